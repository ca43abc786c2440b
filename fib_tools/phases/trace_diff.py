"""Two traces of a model side by side: what took how long before, and what it takes now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fib_tools.model.base import Model
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context

__all__ = ["TraceDiffResult", "TraceDiffRow", "compare_traces"]

_SHOWN = 60


class TraceDiffRow(Model):
    """All runs of one path."""

    path: str
    kind: str
    before_us: float | None = None
    after_us: float | None = None
    ratio: float | None = None
    """After to before: less than 1 is faster."""


class TraceDiffResult(Result):
    """What changed between two traces."""

    rows = "differences"
    row_fields = ("path", "kind", "before_us", "after_us", "ratio")

    before: str
    after: str
    differences: tuple[TraceDiffRow, ...]

    def summary(self) -> Summary:
        """Show the rows in the order in which they ran."""
        columns = ("path", "kind", "before us", "after us", "ratio")
        rows = tuple(
            (row.path, row.kind, _say(row.before_us, "g"), _say(row.after_us, "g"), _say(row.ratio, ".3f"))
            for row in self.differences[:_SHOWN]
        )
        left = len(self.differences) - _SHOWN
        more = (f"... and {left} more; --json has all, --steps the steps",) if left > 0 else ()
        return Summary(tables=(Table(title=f"{self.before} -> {self.after}", columns=columns, rows=rows),), lines=more)


def compare_traces(
    context: Context,
    before: Annotated[Path, Field(description="A trace that `fib trace block` wrote: the baseline.")],
    *,
    candidate: Annotated[Path, Field(description="Another one, to be compared with it.")],
    steps: Annotated[bool, Field(description="Also each step, not only modules and operators.")] = False,
) -> TraceDiffResult:
    """Compare two traces of `fib trace block`: time of each module and operator before and after.

    Exit status 0: compared; 2: one of them cannot be read.
    """
    from fib_tools.capture.perfetto_reading import read_trace  # protobuf is heavy
    from fib_tools.capture.timeline_diff import diff_timelines

    timelines = [read_trace(context.check_readable(path)) for path in (before, candidate)]
    found = diff_timelines(timelines[0], timelines[1])
    rows = [
        TraceDiffRow(
            path=row.path,
            kind=row.kind,
            before_us=_micro(row.before_ns),
            after_us=_micro(row.after_ns),
            ratio=None if row.ratio is None else round(row.ratio, 4),
        )
        for row in found
        if steps or row.kind != "step"
    ]
    return TraceDiffResult(before=str(before), after=str(candidate), differences=tuple(rows))


def _micro(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else round(nanoseconds / 1e3, 2)


def _say(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
