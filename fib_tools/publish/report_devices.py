"""The part of a page that shows one device: standings, curves, limits, its definitions and what was rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from fib_tools.evaluate.report.report_schema import DefinitionReport, DeviceReport, Measurement, Report
from fib_tools.model.evidence import Evidence
from fib_tools.model.solution import BASELINE
from fib_tools.publish.markup import Html, breakable, tag
from fib_tools.publish.report_cells import draw_bar, factor_cell, make_card, make_table, name_device
from fib_tools.publish.report_definitions import Rows, find_best, show_definitions
from fib_tools.publish.report_marks import Marks
from fib_tools.publish.report_plots import Point, draw_bandwidth, draw_curves, draw_roofline, list_points
from fib_tools.publish.report_scales import NOTHING, format_factor, format_percent

__all__ = ["index_rows", "show_device", "show_rejections", "summarise_device"]


def show_device(place: int, device: DeviceReport, report: Report, evidence: Mapping[str, Evidence]) -> Html:
    """Show everything that was measured on one device."""
    definitions = [d for d in report.definitions if (d.device, d.measured_by) == (device.device, device.measured_by)]
    rows = index_rows(device, report.measurements)
    marks = Marks(device, definitions)
    places = {d.definition: number for number, d in enumerate(definitions)}
    points = list_points((found for of_name in rows.values() for found in of_name.values()), evidence)
    parts = [
        *summarise_device(
            device, definitions, marks, points, link=lambda d: f"#definition-{place}-{places[d.definition]}"
        ),
        *show_definitions(place, definitions, rows, marks),
    ]
    return tag("section", *parts, id=f"device-{place}", class_="device")


def summarise_device(
    device: DeviceReport,
    definitions: Sequence[DefinitionReport],
    marks: Marks,
    points: Sequence[Point],
    *,
    link: Callable[[DefinitionReport], str | None],
) -> Iterable[Html]:
    """Show a device's standings, curves, limits and rejections; its definitions in a table that leads to each."""
    yield tag("h2", name_device(device), *([tag("span", "CPU", class_="chip")] if device.is_cpu else []))
    if device.is_cpu:
        yield tag("p", "Measured on a CPU, to learn the loop: these are no figures of a GPU.", class_="alarm card")
    yield _tiles(device, definitions)
    yield tag("div", *_overview(device, marks, points), class_="cols")
    yield _index_table(device, definitions, marks, link)
    yield from show_rejections(device, marks)


def index_rows(device: DeviceReport, measurements: Sequence[Measurement]) -> dict[str, Rows]:
    """Find a device's measurements by definition, with their places among all."""
    found: dict[str, dict[tuple[str, str, str], tuple[int, Measurement]]] = {}
    for row, m in enumerate(measurements):
        if (m.device, m.measured_by) == (device.device, device.measured_by):
            found.setdefault(m.definition, {})[m.author, m.solution, m.workload] = (row, m)
    return dict(found)


def _tiles(device: DeviceReport, definitions: Sequence[DefinitionReport]) -> Html:
    best = device.curves[0].fast["1"] if device.curves else None
    tiles = [
        ("definitions", str(len(definitions)), f"{sum(len(d.workloads) for d in definitions)} workloads"),
        ("evaluations", f"{device.evaluations:,}", f"{100 * device.passed / device.evaluations:.0f}% passed"),
        ("rejected", str(device.rejected), "by an integrity rule" if device.rejected else "no rule was broken"),
    ]
    if best is not None:
        tiles.append(("fast_1, best of all", f"{100 * best:.0f}%", "of workloads at least as fast as the baseline"))
    tiles.append(("timer", ", ".join(device.timers) or "not told", f"measured by {device.measured_by}"))
    return tag(
        "div",
        *(
            tag("div", tag("span", name), tag("strong", value), tag("span", note, class_="dim"), class_="tile")
            for name, value, note in tiles
        ),
        class_="tiles",
    )


def _overview(device: DeviceReport, marks: Marks, points: Sequence[Point]) -> Iterable[Html]:
    yield make_card("Leaderboard", _leaderboard(device, marks))
    if device.curves:
        note = f"Share of {device.curves[0].workloads} workloads that passed and run at least p times as fast."
        yield make_card("fast_p", draw_curves(device.curves, marks), note=note)
    bandwidth, roofline = draw_bandwidth(points, marks), draw_roofline(points, marks)
    if bandwidth:
        yield make_card(
            "Bandwidth", bandwidth, note="Work that memory bounds, against what a copy reaches on this device."
        )
    if roofline:
        yield make_card("Roofline", roofline, note="Achieved arithmetic, under limits measured on this device.")


def _leaderboard(device: DeviceReport, marks: Marks) -> Html:
    columns = (
        ("author", ""),
        ("correct", "n"),
        ("workloads", "n"),
        ("speed-up" if device.has_baseline else "over reference", "n"),
        ("fast_1", "n"),
        ("% of limit", "n"),
        ("rejected", "n"),
    )
    rows = [
        (
            (marks.label(s.author), s.author),
            (format_percent(100 * s.correct), s.correct),
            (f"{s.passed}/{s.attempted}", s.passed),
            (format_factor(factor), factor),
            (draw_bar(None if s.fast_1 is None else 100 * s.fast_1, classes=marks.colour(s.author)), s.fast_1),
            (draw_bar(s.percent, classes=marks.colour(s.author)), s.percent),
            (tag("span", str(s.rejected), class_="bad") if s.rejected else "0", s.rejected),
        )
        for s in device.leaderboard
        for factor in (s.speedup if device.has_baseline else s.reference_speedup,)
    ]
    return make_table(columns, rows, label=f"Leaderboard on {name_device(device)}", sorted_by=4, is_stack=True)


def _index_table(
    device: DeviceReport,
    definitions: Sequence[DefinitionReport],
    marks: Marks,
    link: Callable[[DefinitionReport], str | None],
) -> Html:
    has_baseline = any(report.has_baseline for report in definitions)
    columns = (
        ("definition", ""),
        ("op_type", ""),
        ("workloads", "n"),
        ("best Solution", ""),
        ("passed", "n"),
        ("speed-up" if has_baseline else "over reference", "n"),
        ("% of limit", "n"),
        ("baseline's %", "n"),
    )
    rows = []
    for report in definitions:
        best = find_best(report)
        yard = next((s for s in report.solutions if s.author == BASELINE and s.passed), None)
        rows.append(
            (
                (tag("a", breakable(report.definition), href=link(report)), report.definition),
                (report.op_type, report.op_type),
                (str(len(report.workloads)), len(report.workloads)),
                (marks.label(best.author, best.solution, report.definition), f"{best.author}/{best.solution}")
                if best
                else (tag("span", "none", class_="dim"), None),
                (f"{best.passed}/{best.attempted}", best.passed / best.attempted) if best else (NOTHING, None),
                factor_cell((best.speedup if has_baseline else best.reference_speedup) if best else None),
                (
                    draw_bar(best.percent, classes=marks.colour(best.author)) if best else NOTHING,
                    best.percent if best else None,
                ),
                (draw_bar(yard.percent if yard else None, classes="cb"), yard.percent if yard else None),
            )
        )
    box = tag(
        "input",
        type="search",
        class_="filter",
        placeholder="Filter definitions",
        aria_label=f"Filter definitions on {name_device(device)}",
    )
    return make_card(
        "Definitions", box, make_table(columns, rows, label=f"Definitions on {name_device(device)}", is_stack=True)
    )


def show_rejections(device: DeviceReport, marks: Marks) -> list[Html]:
    """Show what broke a rule that keeps the figures true; nothing where nothing did."""
    if not device.rejections:
        return []
    columns = (("rule", ""), ("Solution", ""), ("definition", ""), ("workloads", "n"), ("what was seen", "wide"))
    rows = [
        (
            (tag("code", r.rule, class_="bad"), r.rule),
            (marks.label(r.author, r.solution, r.definition), f"{r.author}/{r.solution}"),
            (breakable(r.definition), r.definition),
            (str(r.workloads), r.workloads),
            (tag("span", r.detail, class_="log"), r.detail[:80]),
        )
        for r in device.rejections
    ]
    note = "Each broke a rule that keeps the figures true; none of its figures counts."
    return [
        make_card(
            "Rejected for integrity",
            make_table(columns, rows, label=f"Rejected Solutions on {name_device(device)}"),
            note=note,
        )
    ]
