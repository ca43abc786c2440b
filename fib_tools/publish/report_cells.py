"""Tables that can be sorted, and the cells that stand in several of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fib_tools.evaluate.report.report_reading import OWN_TOOL
from fib_tools.evaluate.report.report_schema import DefinitionReport, DeviceReport
from fib_tools.publish.markup import Html, tag
from fib_tools.publish.report_scales import NOTHING, format_factor, format_percent

__all__ = ["Cell", "draw_bar", "factor_cell", "make_card", "make_table", "name_device"]

Cell = tuple[str, str | float | None]
"""What a cell shows, and what it is sorted by."""


def name_device(report: DeviceReport | DefinitionReport) -> str:
    """Name the device of a report, and who measured where it was not us."""
    return report.device if report.measured_by == OWN_TOOL else f"{report.device} ({report.measured_by})"


def make_card(title: str, *content: str, note: str = "") -> Html:
    """Frame a part of the page under a heading."""
    return tag("section", tag("h3", title), *([tag("p", note, class_="dim")] if note else []), *content, class_="card")


def make_table(
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[Cell]],
    *,
    label: str,
    sorted_by: int = -1,
    is_tall: bool = False,
    is_stack: bool = False,
) -> Html:
    """Write a table that can be sorted: columns by name and class, cells with the value that they are sorted by.

    A stack is shown as a block for each row where there is little room, and its numbers say what they are.
    """
    head = (
        tag(
            "th",
            tag("button", name, tag("span", class_="arrow", aria_hidden="true"), type="button"),
            scope="col",
            class_=classes or None,
            aria_sort="descending" if place == sorted_by else "none",
        )
        for place, (name, classes) in enumerate(columns)
    )
    body = (
        tag(
            "tr",
            *(_cell(cell, *columns[place], is_head=place == 0, is_named=is_stack) for place, cell in enumerate(row)),
        )
        for row in rows
    )
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), aria_label=label)
    classes = " ".join(["scroll", *(["tall"] if is_tall else []), *(["stack"] if is_stack else [])])
    return tag("div", table, class_=classes, tabindex="0", role="region", aria_label=label)


def _cell(cell: Cell, column: str, classes: str, *, is_head: bool, is_named: bool) -> Html:
    shown, value = cell
    key = "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
    name = "th" if is_head else "td"
    said = column if is_named and classes == "n" else None
    return tag(name, shown, data_v=key, class_=classes or None, scope="row" if is_head else None, data_of=said)


def factor_cell(value: float | None) -> Cell:
    """Write a speed-up; what is faster than the baseline stands out."""
    if value is None:
        return tag("span", NOTHING, class_="dim"), None
    return tag("span", format_factor(value), class_="good" if value > 1 else "slow" if value < 1 else None), value


def draw_bar(percent: float | None, *, classes: str = "") -> Html:
    """Write a percentage with a bar under it."""
    if percent is None:
        return tag("span", NOTHING, class_="dim")
    bar = tag("span", tag("span", style=f"width:{min(percent, 100):.1f}%"), class_="bar", aria_hidden="true")
    return tag("span", tag("span", format_percent(percent)), bar, class_=f"pc {classes}".strip())
