"""Two timelines side by side: what took how long before, and what it takes now."""

from __future__ import annotations

from fib_tools.capture.timeline import Kind, Timeline
from fib_tools.model.base import Model, NonEmpty, NonNegative

__all__ = ["DiffRow", "diff_timelines"]


class DiffRow(Model):
    """All spans of one path, which may have run many times."""

    path: NonEmpty
    """`model/layers.0/self_attn/q_proj`"""
    kind: Kind
    before_ns: NonNegative | None = None
    """Over all its runs; None where it did not run."""
    after_ns: NonNegative | None = None
    before_runs: NonNegative = 0
    after_runs: NonNegative = 0

    @property
    def ratio(self) -> float | None:
        """After to before, so that less than one is faster; None where one of them did not run, or took no time."""
        if not self.before_ns or self.after_ns is None:
            return None
        return self.after_ns / self.before_ns


def diff_timelines(before: Timeline, after: Timeline) -> tuple[DiffRow, ...]:
    """Compare path by path, in order of the first start; what only ran after stands behind what it followed."""
    old, new = _sum_parts(before), _sum_parts(after)
    return tuple(_make_row(part, old.get(part), new.get(part)) for part in _merge_parts(list(old), list(new)))


_Part = tuple[str, Kind]
"""A path and its kind."""
_Sum = tuple[int, int]
"""Nanoseconds and runs."""


def _sum_parts(timeline: Timeline) -> dict[_Part, _Sum]:
    sums: dict[_Part, _Sum] = {}
    for path, span in zip(timeline.list_paths(), timeline.spans, strict=True):
        spent, runs = sums.get((path, span.kind), (0, 0))
        sums[path, span.kind] = (spent + span.duration_ns, runs + 1)
    return sums


def _merge_parts(old: list[_Part], new: list[_Part]) -> list[_Part]:
    """Put what only the new list has behind that which stands before it there."""
    known = set(old)
    following: dict[_Part | None, list[_Part]] = {}
    anchor: _Part | None = None
    for part in new:
        if part in known:
            anchor = part
        else:
            following.setdefault(anchor, []).append(part)
    merged = list(following.get(None, ()))
    for part in old:
        merged += [part, *following.get(part, ())]
    return merged


def _make_row(part: _Part, old: _Sum | None, new: _Sum | None) -> DiffRow:
    path, kind = part
    before_ns, before_runs = old or (None, 0)
    after_ns, after_runs = new or (None, 0)
    return DiffRow(
        path=path, kind=kind, before_ns=before_ns, after_ns=after_ns, before_runs=before_runs, after_runs=after_runs
    )
