"""What is known of a Definition on another GPU than the one at hand: no target, but a measure of what can be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from fib_tools.draft.target import Target, format_axes, format_us
from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.model.solution import BASELINE

__all__ = ["list_elsewhere"]

_MOST_SIZES = 4

_Times = Mapping[str, Measurement]
"""The fastest by workload."""


def list_elsewhere(target: Target, measurements: Sequence[Measurement]) -> list[str]:
    """List what the largest sizes took on the GPU that most was measured on; nothing where no size was."""
    sizes = {shape.workload for shape in target.shapes}
    known = [each for each in measurements if each.workload in sizes]
    devices = [each.device for each in known]
    if not devices:
        return []
    device = max(sorted(set(devices)), key=devices.count)
    here = [each for each in known if each.device == device]
    baselines = _find_fastest(each for each in here if each.author == BASELINE)
    solutions = _find_fastest(each for each in here if each.author != BASELINE)
    names = (
        ("baseline", baselines, lambda each: each.solution),
        ("best Solution", solutions, lambda each: f"{each.author}/{each.solution}"),
    )
    head = "; ".join(f"{what} ({_join(times, name)})" for what, times, name in names if times)
    more = sorted(set(devices) - {device})
    return [
        f"## Measured on {device}: {head}",
        "axes | baseline us, % of its limit | best Solution us, % of its limit",
        *_list_sizes(target, baselines, solutions),
        *([f"Measured on {', '.join(more)} too."] if more else []),
    ]


def _find_fastest(measurements: Iterable[Measurement]) -> _Times:
    ranked = sorted(measurements, key=lambda each: -(each.milliseconds or 0.0))
    return {each.workload: each for each in ranked}


def _join(times: _Times, name: Callable[[Measurement], str]) -> str:
    return ", ".join(sorted({name(each) for each in times.values()}))


def _list_sizes(target: Target, baselines: _Times, solutions: _Times) -> list[str]:
    weights = target.weights
    measured = [shape for shape in target.shapes if shape.workload in {*baselines, *solutions}]
    ranked = sorted(measured, key=lambda shape: (-weights[shape.workload], -shape.bytes))
    rows = [
        f"{format_axes(shape.axes)} | {_write(baselines.get(shape.workload))} | {_write(solutions.get(shape.workload))}"
        for shape in ranked[:_MOST_SIZES]
    ]
    left = len(ranked) - len(rows)
    return [*rows, f"... and {left} more"] if left else rows


def _write(measured: Measurement | None) -> str:
    if measured is None:
        return "-"
    share = f", {measured.percent:.0f}%" if measured.percent is not None else ""
    return f"{format_us(measured.milliseconds)}{share}"
