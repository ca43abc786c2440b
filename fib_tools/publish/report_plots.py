"""The plots of a page: lines as SVG that stretches with the page, marks and words as HTML that does not.

So a plot fills 400 pixels as well as 1600, and its words stay readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from fib_tools.evaluate.report.report_schema import DefinitionReport, FastCurve, Measurement
from fib_tools.model.evidence import Evidence, Roofline
from fib_tools.model.solution import BASELINE
from fib_tools.publish.markup import Html, join, tag
from fib_tools.publish.report_marks import Marks, legend
from fib_tools.publish.report_scales import (
    TIMES,
    Scale,
    format_bytes,
    format_ms,
    format_number,
    linear_scale,
    log_scale,
)

__all__ = ["Point", "draw_bandwidth", "draw_curves", "draw_roofline", "draw_speedups", "list_points"]

_MOST_CURVES = 9
_MOST_POINTS = 2500
"""A browser draws them without delay; the fastest of each workload are kept first."""

_MOST_STEPS = 400
"""Of a curve; more are finer than a pixel."""

_LARGEST = 1e24
"""Beyond all bytes and operations of any machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A measurement whose work is known."""

    measurement: Measurement
    roofline: Roofline
    row: int | None
    """Its place in the page's data; None where the page has none."""

    @property
    def bytes_per_second(self) -> float:
        """Achieved, of the fewest bytes that the work needs."""
        return self.roofline.bytes / (self.measurement.milliseconds or 1.0) * 1e3

    @property
    def flops_per_second(self) -> float:
        """Achieved."""
        return self.roofline.flops / (self.measurement.milliseconds or 1.0) * 1e3


def list_points(
    measurements: Iterable[tuple[int | None, Measurement]], evidence: Mapping[str, Evidence]
) -> list[Point]:
    """List the passed measurements whose work is known, the fastest of each workload first if there are too many."""
    points = [
        Point(measurement=m, roofline=seen.roofline, row=row)
        for row, m in measurements
        if m.passed and m.milliseconds and (seen := evidence.get(m.evidence or "")) and _is_sound(seen.roofline)
    ]
    return sorted(points, key=lambda point: -point.roofline.percent)[:_MOST_POINTS]


def _is_sound(roofline: Roofline | None) -> TypeGuard[Roofline]:
    """Tell whether its numbers can be drawn: a dataset may hold any that JSON can say."""
    return roofline is not None and all(
        value < _LARGEST for value in (roofline.bytes, roofline.flops, roofline.bandwidth, roofline.flops_per_second)
    )


def _plot(
    lines: Iterable[Html], over: Iterable[Html], *, x: Scale, y: Scale, words: Mapping[str, str], kind: str = ""
) -> Html:
    """Frame a plot: grid and ticks of both axes, lines under marks, the axes' names, and a text for those who see none."""
    grid = [
        *(tag("line", x1=_at(x, tick), x2=_at(x, tick), y1="0", y2="100", class_="grid") for tick in x.ticks),
        *(tag("line", y1=_up(y, tick), y2=_up(y, tick), x1="0", x2="100", class_="grid") for tick in y.ticks),
    ]
    ticks = [
        *_across(x, lambda tick: _tick(words, "x", tick)),
        *(tag("span", _tick(words, "y", tick), class_="ty", style=f"top:{_up(y, tick)}%") for tick in y.ticks),
    ]
    svg = tag("svg", *grid, *lines, viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true")
    area = tag("div", svg, *over, *ticks, class_="area", role="img", aria_label=words["label"])
    return tag(
        "div",
        tag("div", words["y"], class_="ylab"),
        area,
        tag("div", words["x"], class_="xlab"),
        class_=f"plot {kind}".strip(),
    )


def _across(x: Scale, write: Callable[[float], str]) -> list[Html]:
    """Write the ticks of an axis from left to right; a narrow page leaves out every second, but not 1."""
    odd = (x.ticks.index(1.0) + 1) % 2 if 1.0 in x.ticks else 1
    return [
        tag("span", write(tick), class_="tx odd" if place % 2 == odd else "tx", style=f"left:{_at(x, tick)}%")
        for place, tick in enumerate(x.ticks)
    ]


def _at(scale: Scale, value: float) -> str:
    return f"{scale.place(value):.2f}"


def _up(scale: Scale, value: float) -> str:
    return f"{100 - scale.place(value):.2f}"


def _tick(words: Mapping[str, str], axis: str, value: float) -> str:
    unit = words.get(f"{axis}unit", "")
    if unit == "%":
        return f"{100 * value:.0f}%"
    return format_bytes(value) if unit == "bytes" else f"{format_number(value)}{unit}"


def _path(points: Iterable[tuple[float, float]], x: Scale, y: Scale, classes: str) -> Html:
    d = " L".join(f"{_at(x, a)} {_up(y, b)}" for a, b in points)
    return tag("path", d=f"M{d}", class_=classes)


def draw_curves(curves: Sequence[FastCurve], marks: Marks) -> Html:
    """Draw fast_p: which share of the workloads is at least p times as fast as the baseline."""
    shown = curves[:_MOST_CURVES]
    x = log_scale((value for curve in shown for value in curve.speedups), include=1.0)
    y = Scale(low=0.0, high=1.0, ticks=(0.0, 0.25, 0.5, 0.75, 1.0), is_log=False)
    lines = [_path(((1.0, 0.0), (1.0, 1.0)), x, y, "yard")]
    whole = {id(curve): len(shown) > 1 and curve is shown[0] for curve in shown}
    for curve in reversed(shown):
        classes = "step all" if whole[id(curve)] else f"step {marks.colour(curve.name)}"
        lines.append(_path(_steps(curve, x), x, y, classes))
    words = {
        "label": "; ".join(f"{c.name}: {100 * c.fast['1']:.0f}% of workloads at least as fast" for c in shown),
        "x": "p: speed-up over the baseline, log scale",
        "y": "workloads",
        "xunit": TIMES,
        "yunit": "%",
    }
    over = [tag("span", "baseline", class_="note up", style=f"left:{_at(x, 1.0)}%;top:0")]
    keys = (
        join(
            [
                tag("span", class_=f"dash {'all' if whole[id(curve)] else marks.colour(curve.name)}"),
                tag("span", curve.name or "unknown"),
                tag("span", f"fast_1 {100 * curve.fast['1']:.0f}%", class_="dim"),
            ]
        )
        for curve in shown
    )
    return join([_plot(lines, over, x=x, y=y, words=words), legend(keys)])


def _steps(curve: FastCurve, x: Scale) -> list[tuple[float, float]]:
    """Walk down from the share that passed: each workload's speed-up is where the curve falls; many fall together."""
    left = len(curve.speedups)
    points = [(x.low, left / curve.workloads)]
    stride = math.ceil(left / _MOST_STEPS) or 1
    for place in range(0, left, stride):
        part = curve.speedups[place : place + stride]
        points.append((part[0], left / curve.workloads))
        left -= len(part)
        points.append((part[0], left / curve.workloads))
    points.append((x.high, left / curve.workloads))
    return points


def draw_bandwidth(points: Sequence[Point], marks: Marks) -> Html | None:
    """Draw achieved bandwidth against bytes, for work that memory bounds; None without such work."""
    held = [point for point in points if point.roofline.bound == "memory" and point.roofline.bytes]
    if not held:
        return None
    limit = max(point.roofline.bandwidth for point in held)
    x = log_scale((point.roofline.bytes for point in held), margin=1.5)
    y = linear_scale(max(limit, *(point.bytes_per_second for point in held)) / 1e12)
    words = {
        "label": f"Achieved bandwidth of {len(held)} measurements; the measured limit is {limit / 1e12:#.3g} TB/s",
        "x": "bytes that must move, log scale",
        "y": "TB/s",
        "xunit": "bytes",
    }
    lines = [_path(((x.low, limit / 1e12), (x.high, limit / 1e12)), x, y, "roof")]
    note = tag("span", f"measured copy {limit / 1e12:#.3g} TB/s", class_="note", style=f"top:{_up(y, limit / 1e12)}%")
    over = [
        note,
        *(
            _mark(point, marks, (x.place(point.roofline.bytes), 100 - y.place(point.bytes_per_second / 1e12)))
            for point in held
        ),
    ]
    return join([_plot(lines, over, x=x, y=y, words=words), _authors(held, marks)])


def draw_roofline(points: Sequence[Point], marks: Marks) -> Html | None:
    """Draw achieved arithmetic against intensity under the measured roofs; None where nothing is computed."""
    held = [point for point in points if point.roofline.flops and point.roofline.bytes]
    if not held:
        return None
    bandwidth = max(point.roofline.bandwidth for point in held)
    roofs: dict[str, float] = {}
    for point in held:
        if point.roofline.flops_per_second:
            unit = point.roofline.unit or "arithmetic"
            roofs[unit] = max(roofs.get(unit, 0.0), point.roofline.flops_per_second)
    intensities = [point.roofline.flops / point.roofline.bytes for point in held]
    x = log_scale([*intensities, *(roof / bandwidth for roof in roofs.values() if bandwidth)], margin=1.6)
    y = log_scale([*(p.flops_per_second / 1e12 for p in held), *(roof / 1e12 for roof in roofs.values())], margin=1.6)
    lines, over = _roofs(roofs, bandwidth, x, y)
    words = {
        "label": f"Achieved arithmetic of {len(held)} measurements against intensity, under the measured limits",
        "x": "flop per byte, log scale",
        "y": "TFLOP/s",
    }
    over += [
        _mark(point, marks, (x.place(intensity), 100 - y.place(point.flops_per_second / 1e12)))
        for point, intensity in zip(held, intensities, strict=True)
    ]
    return join([_plot(lines, over, x=x, y=y, words=words), _authors(held, marks)])


def _roofs(roofs: Mapping[str, float], bandwidth: float, x: Scale, y: Scale) -> tuple[list[Html], list[Html]]:
    """Draw the slope that memory sets, as far as the highest roof, and a level for each kind of arithmetic."""
    lines, notes = [], []
    slope = bandwidth / 1e12
    highest = max(roofs.values(), default=0.0) / 1e12
    if slope:
        start = max(x.low, y.low / slope)
        end = min(x.high, (highest or y.high) / slope, y.high / slope)
        if end > start:
            lines.append(_path(((start, start * slope), (end, end * slope)), x, y, "roof"))
    for unit, flops in sorted(roofs.items()):
        level = flops / 1e12
        start = max(x.low, level / slope if slope else x.low)
        if start < x.high:
            lines.append(_path(((start, level), (x.high, level)), x, y, "roof"))
        notes.append(tag("span", f"{unit} {level:.3g} TFLOP/s", class_="note", style=f"top:{_up(y, level)}%"))
    return lines, notes


def _mark(point: Point, marks: Marks, at: Sequence[float]) -> Html:
    m = point.measurement
    more = {} if point.row is None else {"data_m": str(point.row)}
    return marks.mark(m.author, m.solution, m.definition, at=at, **more)


def _authors(points: Iterable[Point], marks: Marks) -> Html:
    authors = dict.fromkeys(point.measurement.author for point in points)
    ordered = sorted(authors, key=lambda author: (author != BASELINE, author))
    return legend(marks.label(author) for author in ordered)


def draw_speedups(
    report: DefinitionReport, rows: Mapping[tuple[str, str, str], tuple[int, Measurement]], marks: Marks
) -> Html:
    """Draw a row of marks for each workload: speed-ups over the baseline, or times where there is no baseline."""
    measured = [m for _, m in rows.values()]
    is_relative = any(m.speedup is not None for m in measured)
    values = [value for m in measured if (value := _value(m, is_relative=is_relative)) is not None]
    if not values:
        return tag("p", "Nothing passed here.", class_="dim")
    x = log_scale(values, include=1.0 if is_relative else None)
    lines = _draw_levels(x, is_relative=is_relative)
    body: list[Html] = []
    for workload in report.workloads:
        found = [rows[key] for s in report.solutions if (key := (s.author, s.solution, workload.uuid)) in rows]
        failed = (
            tag("span", TIMES, class_=f"no {marks.colour(m.author)}", data_m=str(row))
            for row, m in found
            if not m.passed
        )
        dots = (
            marks.mark(m.author, m.solution, m.definition, at=(x.place(value),), data_m=str(row))
            for row, m in found
            if (value := _value(m, is_relative=is_relative)) is not None
        )
        body += [
            tag("div", workload.label, class_="dl"),
            tag("div", *failed, class_="df"),
            tag("div", *lines, *dots, class_="dt"),
        ]
    axis = _across(x, lambda tick: f"{format_number(tick)}{TIMES}" if is_relative else format_ms(tick))
    body += [tag("div", class_="dl"), tag("div", class_="df"), tag("div", *axis, class_="dt ax")]
    what = "Speed-up over the baseline" if is_relative else "Time"
    aside = tag("span", f" ({TIMES} at the left: did not pass)", class_="dim")
    label = f"{what} by workload, log scale; the table below has the same figures"
    return tag(
        "div",
        tag("p", f"{what}, log scale", aside, class_="cap"),
        tag("div", *body, class_="dots", role="img", aria_label=label),
    )


def _draw_levels(x: Scale, *, is_relative: bool) -> list[Html]:
    """Draw the lines of the ticks through a row, and the baseline's where it is the measure."""
    levels = [
        tag("span", class_="gl", style=f"left:{_at(x, tick)}%") for tick in x.ticks if not is_relative or tick != 1
    ]
    return [*levels, tag("span", class_="gl yl", style=f"left:{_at(x, 1.0)}%")] if is_relative else levels


def _value(m: Measurement, *, is_relative: bool) -> float | None:
    value = m.speedup if is_relative else m.milliseconds
    return value if m.passed and value else None
