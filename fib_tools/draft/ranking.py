"""Where a faster kernel would save most: time on the fastest Solution so far, less what the device needs, times its layers.

Source: Amdahl (1967), AFIPS spring joint computer conference, pages 483 to 485: what is gained is bounded by the share of the
time that the improved part takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean

from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.model.base import Model

__all__ = ["Standing", "rank_kernels"]


class Standing(Model):
    """One kernel of a model; times are the means over its Workloads, in milliseconds."""

    definition: str
    layers: int
    """How often it runs in one forward."""
    milliseconds: float
    """One call of the fastest Solution."""
    limit_ms: float
    """What the device was measured to need at least."""
    author: str
    """Of the Solution that is fastest most often."""
    share: float
    """Of the time of all measured kernels of the model."""
    gain: float
    """Of that time, at most, if it reached the limit."""


def rank_kernels(layers: Mapping[str, int], measurements: Iterable[Measurement]) -> tuple[Standing, ...]:
    """Rank the kernels of a model, by Definition's name, from what was measured on one device; the largest gain first.

    Kernels without a right Solution whose share of the limit is known are left out.
    """
    fastest: dict[str, dict[str, Measurement]] = defaultdict(dict)
    for each in measurements:
        if each.definition in layers and each.passed and each.milliseconds and each.percent:
            best = fastest[each.definition].get(each.workload)
            if best is None or each.milliseconds < (best.milliseconds or 0.0):
                fastest[each.definition][each.workload] = each
    rows = [_stand(name, max(1, layers[name]), list(found.values())) for name, found in fastest.items()]
    total = sum(row.layers * row.milliseconds for row in rows)
    return tuple(
        sorted((_share(row, total) for row in rows), key=lambda row: (-row.gain, row.definition)) if total else ()
    )


def _stand(name: str, layers: int, found: list[Measurement]) -> Standing:
    times = [each.milliseconds or 0.0 for each in found]
    limits = [time * min(100.0, each.percent or 0.0) / 100 for time, each in zip(times, found, strict=True)]
    authors = [each.author for each in found]
    return Standing(
        definition=name,
        layers=layers,
        milliseconds=fmean(times),
        limit_ms=fmean(limits),
        author=max(authors, key=authors.count),
        share=0.0,
        gain=0.0,
    )


def _share(row: Standing, total: float) -> Standing:
    gain = row.layers * (row.milliseconds - row.limit_ms) / total
    return row.model_copy(update={"share": row.layers * row.milliseconds / total, "gain": gain})
