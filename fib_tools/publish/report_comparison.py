"""The part of a page that compares two Solutions or two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress

from fib_tools.evaluate.report.report_schema import ComparedPair, Comparison, Verdict
from fib_tools.publish.markup import Html, breakable, tag
from fib_tools.publish.report_cells import Cell, make_table
from fib_tools.publish.report_scales import NOTHING, Scale, format_ms, log_scale

__all__ = ["show_comparison"]

_VERDICTS: Mapping[Verdict, str] = {Verdict.FIRST: "one", Verdict.SECOND: "two", Verdict.SAME: "dim"}


def show_comparison(comparison: Comparison | None) -> list[Html]:
    """Show two sides pair by pair, with the intervals of their ratios; nothing where nothing is compared."""
    if comparison is None:
        return []
    counted = [f"{verdict.value}: {count}" for verdict in Verdict if (count := comparison.count(verdict))]
    means = [
        tag("p", "On ", device, " the first takes ", tag("b", f"{ratio:.3f}"), " times as long, by the geometric mean.")
        for device, ratio in comparison.ratios.items()
    ]
    sides = tag("p", "first ", tag("code", comparison.first), ", second ", tag("code", comparison.second))
    table = _table(comparison.pairs)
    return [
        tag("section", tag("h2", "Comparison"), sides, *means, tag("p", "; ".join(counted), "."), table, class_="card")
    ]


def _table(pairs: Sequence[ComparedPair]) -> Html:
    # both sides' Solutions are one only where runs are compared
    shown = [True, len({pair.first for pair in pairs}) > 1, True, len({pair.device for pair in pairs}) > 1]
    heads = (("definition", ""), ("Solution", ""), ("workload", ""), ("device", ""))
    columns = (
        *compress(heads, shown),
        ("first", "n"),
        ("second", "n"),
        ("first / second", "n"),
        ("95% interval", "n"),
        ("verdict", ""),
    )
    scale = log_scale((value for pair in pairs for value in (pair.low, pair.high) if value is not None), include=1.0)
    rows = []
    for number, pair in enumerate(pairs):
        names: tuple[Cell, ...] = (
            (breakable(pair.definition), pair.definition),
            (breakable(pair.first), pair.first),
            (pair.label, float(number)),
            (pair.device, pair.device),
        )
        rows.append((*compress(names, shown), *_figures(pair, scale)))
    return make_table(columns, rows, label="Comparison by workload", is_tall=True)


def _figures(pair: ComparedPair, scale: Scale) -> tuple[Cell, ...]:
    return (
        (format_ms(pair.first_ms), pair.first_ms),
        (format_ms(pair.second_ms), pair.second_ms),
        (NOTHING if pair.ratio is None else f"{pair.ratio:.3f}", pair.ratio),
        (_interval(pair, scale), pair.low),
        (tag("span", pair.verdict.value, class_=_VERDICTS.get(pair.verdict, "bad")), pair.verdict.value),
    )


def _interval(pair: ComparedPair, scale: Scale) -> Html:
    """Draw the interval beside its ends; the line is where both take equally long."""
    if pair.low is None or pair.high is None:
        return tag("span", NOTHING, class_="dim")
    left, right = scale.place(pair.low), scale.place(pair.high)
    bar = tag(
        "span", style=f"left:{left:.2f}%;width:{max(right - left, 0.8):.2f}%", class_=_VERDICTS.get(pair.verdict, "")
    )
    even = tag("i", style=f"left:{scale.place(1.0):.2f}%")
    return tag(
        "span",
        tag("span", f"{pair.low:.3f} to {pair.high:.3f}"),
        tag("span", even, bar, class_="iv", aria_hidden="true"),
    )
