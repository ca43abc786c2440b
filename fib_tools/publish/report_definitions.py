"""The part of a page that shows one definition: its Solutions, their speed-ups, and every time with its evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fib_tools.evaluate.report.report_schema import DefinitionReport, Measurement, SolutionReport
from fib_tools.model.solution import BASELINE
from fib_tools.publish.markup import Html, breakable, join, tag
from fib_tools.publish.report_cells import Cell, draw_bar, factor_cell, make_table, name_device
from fib_tools.publish.report_marks import Marks
from fib_tools.publish.report_plots import draw_speedups
from fib_tools.publish.report_scales import NOTHING, format_factor, format_ms, format_percent

__all__ = ["Rows", "find_best", "show_definitions", "show_solutions", "show_times"]

_OPEN_DEFINITIONS = 3
"""So many definitions are shown at once; of more, each is opened by its reader."""

Rows = Mapping[tuple[str, str, str], tuple[int, Measurement]]
"""By author, Solution and workload: the place in the page's data, and the measurement."""


def find_best(report: DefinitionReport) -> SolutionReport | None:
    """Find the best Solution that is no baseline and passed somewhere."""
    others = [s for s in report.solutions if s.author != BASELINE and s.passed]
    return others[0] if others else None


def show_definitions(
    place: int, definitions: Sequence[DefinitionReport], rows: Mapping[str, Rows], marks: Marks
) -> Iterable[Html]:
    """Show each definition of a device, folded where there are many."""
    for number, report in enumerate(definitions):
        best = find_best(report)
        said = [tag("span", report.op_type, class_="chip")]
        if best and best.speedup is not None:
            said.append(tag("span", f"best {format_factor(best.speedup)}", class_="chip"))
        summary = tag("summary", tag("div", tag("h3", breakable(report.definition)), *said))
        content = [
            tag(
                "div",
                show_solutions(report, marks),
                draw_speedups(report, rows[report.definition], marks),
                class_="pair",
            ),
            show_times(report, rows[report.definition], marks),
        ]
        yield tag(
            "details",
            summary,
            *content,
            id=f"definition-{place}-{number}",
            class_="card definition",
            data_name=f"{report.definition} {report.op_type}".lower(),
            open=len(definitions) <= _OPEN_DEFINITIONS or number == 0,
        )


def show_solutions(report: DefinitionReport, marks: Marks) -> Html:
    """Show how far the Solutions of a definition have come, the best first."""
    columns = (
        ("Solution", ""),
        ("passed", "n"),
        ("speed-up", "n"),
        ("over reference", "n"),
        ("% of limit", "n"),
        ("fast_1", "n"),
    )
    rows = []
    for s in report.solutions:
        broken = [tag("code", rule, class_="bad") for rule in s.rules]
        name = join([marks.label(s.author, s.solution, report.definition), *broken], " ")
        rows.append(
            (
                (name, f"{s.author}/{s.solution}"),
                (
                    tag("span", f"{s.passed}/{s.attempted}", class_="bad" if s.passed < s.attempted else None),
                    s.passed / s.attempted,
                ),
                factor_cell(s.speedup),
                (format_factor(s.reference_speedup), s.reference_speedup),
                (draw_bar(s.percent, classes=marks.colour(s.author)), s.percent),
                (format_percent(100 * s.fast["1"]) if s.fast else NOTHING, s.fast.get("1")),
            )
        )
    return make_table(columns, rows, label=f"Solutions of {report.definition} on {name_device(report)}", is_stack=True)


def show_times(report: DefinitionReport, rows: Rows, marks: Marks) -> Html:
    """Show the time of every Solution on every workload."""
    columns = [("workload", ""), *((f"{s.author or 'unknown'}/{s.solution}", "n") for s in report.solutions)]
    body: list[Sequence[Cell]] = []
    for number, workload in enumerate(report.workloads):
        cells: list[Cell] = [(tag("span", workload.label, title=workload.uuid), float(number))]
        cells += [_time_cell(rows.get((s.author, s.solution, workload.uuid)), marks) for s in report.solutions]
        body.append(cells)
    caption = tag("p", "Time by workload; a figure opens its evidence.", class_="cap")
    return tag(
        "div",
        caption,
        make_table(columns, body, label=f"Times of {report.definition} by workload on {name_device(report)}"),
        class_="times",
    )


def _time_cell(found: tuple[int, Measurement] | None, marks: Marks) -> Cell:
    if found is None:
        return tag("span", NOTHING, class_="dim"), None
    row, m = found
    if not m.passed:
        text = m.rule or m.status.value.replace("_", " ").lower()
        return tag("button", text, type="button", class_="ev bad", data_m=str(row)), None
    bar = []
    if m.percent is not None:
        width = tag("span", style=f"width:{min(m.percent, 100):.1f}%")
        bar = [tag("span", width, class_=f"bar {marks.colour(m.author)}", aria_hidden="true")]
    factor = format_factor(m.speedup) if m.speedup is not None and m.author != BASELINE else ""
    said = [tag("span", factor, class_="dim")] if factor else []
    label = f"{format_ms(m.milliseconds)} {factor}".strip()
    label += f", {format_percent(m.percent)} of the limit: show the evidence"
    return (
        tag(
            "button",
            format_ms(m.milliseconds),
            " ",
            *said,
            *bar,
            type="button",
            class_="ev",
            data_m=str(row),
            aria_label=label,
        ),
        m.milliseconds,
    )
