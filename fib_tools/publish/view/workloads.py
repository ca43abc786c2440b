"""The Workloads of a Definition: how lengths are distributed, where they come from, and each of them in a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fib_tools.evaluate.report.report_tables import label_workloads
from fib_tools.model.definition import Definition
from fib_tools.model.workload import RandomInput, SafetensorsInput, ScalarInput, Workload
from fib_tools.publish.markup import Html, join, tag
from fib_tools.publish.report_cells import Cell, make_table
from fib_tools.publish.report_scales import NOTHING
from fib_tools.publish.view.cells import count, parts_bar

__all__ = ["describe_lengths", "show_workloads"]

_MOST_ROWS = 200
_MOST_BARS = 16
_MOST_AXES = 4
_ORIGINS = (("real", "c2"), ("dummy", "c0"), ("synthetic", "c8"), ("not told", "c8"))


def describe_lengths(definition: Definition, workloads: Sequence[Workload]) -> dict[str, str]:
    """Say of each var axis which lengths there are."""
    said = {}
    for name in definition.var_axes:
        lengths = sorted({each.axes[name] for each in workloads if name in each.axes})
        if len(lengths) == 1:
            said[name] = f"{lengths[0]:,}"
        elif lengths:
            said[name] = f"{lengths[0]:,} … {lengths[-1]:,}"
    return said


def show_workloads(definition: Definition, workloads: Sequence[Workload]) -> Iterable[Html]:
    """Show distributions, origins and the table."""
    if not workloads:
        yield tag(
            "p", "None yet: fib collect gets them from an engine, fib trace model from transformers.", class_="dim"
        )
        return
    calls = sum(each.count or 1 for each in workloads)
    is_weighted = any(each.count for each in workloads)
    yield _origins(workloads)
    axes = _find_telling_axes(definition, workloads)
    yield tag("div", *(_histogram(name, workloads, is_weighted=is_weighted) for name in axes), class_="hists")
    if is_weighted:
        yield tag("p", f"A bar is the share of the {calls:,} calls that these Workloads stand for.", class_="cap")
    fold = tag("summary", f"All {len(workloads):,}" if len(workloads) <= _MOST_ROWS else f"The first {_MOST_ROWS:,}")
    yield tag("details", fold, _table(definition, workloads, is_weighted=is_weighted), class_="fold")
    if len(workloads) > _MOST_ROWS:
        at = f"workloads/{definition.op_type}/{definition.name}.jsonl"
        yield tag("p", f"{len(workloads) - _MOST_ROWS:,} more in ", tag("code", at), class_="cap")


def _origins(workloads: Sequence[Workload]) -> Html:
    counted: Counter[str] = Counter(each.origin or "not told" for each in workloads)
    parts = [(f"{name}", counted[name], classes) for name, classes in _ORIGINS]
    return tag("div", parts_bar(parts, label="Origins of the Workloads"), class_="origins")


def _find_telling_axes(definition: Definition, workloads: Sequence[Workload]) -> list[str]:
    """Choose the axes in which the Workloads differ: others follow from these by the constraints."""
    labels = label_workloads({each.uuid: each.axes for each in workloads})
    words = {word for label in labels.values() for word in label.split(" ")}
    telling = [name for name in definition.var_axes if name in words]
    return (telling or list(definition.var_axes))[:_MOST_AXES]


def _histogram(name: str, workloads: Sequence[Workload], *, is_weighted: bool) -> Html:
    weights: Counter[int] = Counter()
    for each in workloads:
        if name in each.axes:
            weights[each.axes[name]] += (each.count or 1) if is_weighted else 1
    bars = _bin(weights)
    whole, most = sum(weights.values()), max((weight for _, weight in bars), default=1)
    columns = (
        tag(
            "div",
            tag("span", f"{100 * weight / whole:.0f}%" if weight / whole >= 0.005 else "", class_="share"),
            tag("span", class_="col", style=f"height:{max(100 * weight / most, 1.5):.1f}%"),
            tag("span", text, class_="len"),
        )
        for text, weight in bars
    )
    label = f"{name}: " + ", ".join(f"{text}: {100 * weight / whole:.0f}%" for text, weight in bars)
    caption = tag("figcaption", tag("code", name), tag("span", f" {count(len(weights), 'length')}", class_="dim"))
    return tag("figure", caption, tag("div", *columns, class_="hist", role="img", aria_label=label))


def _bin(weights: Mapping[int, int]) -> list[tuple[str, int]]:
    """Take each length for itself where there are few; else join those between two powers of two."""
    if len(weights) <= _MOST_BARS:
        return [(_short(length), weights[length]) for length in sorted(weights)]
    joined: Counter[int] = Counter()
    for length, weight in weights.items():
        joined[length.bit_length()] += weight
    powers = range(min(joined), max(joined) + 1)
    width = -(-len(powers) // _MOST_BARS)
    groups = [powers[place : place + width] for place in range(0, len(powers), width)]
    lowest = (1 << group[0] >> 1 for group in groups)
    return [
        (f"≥{_short(low)}", sum(joined[power] for power in group)) for low, group in zip(lowest, groups, strict=True)
    ]


def _short(length: int) -> str:
    for step, unit in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if length >= step and length % step == 0:
            return f"{length // step}{unit}"
    return f"{length}" if length < 10_000 else f"{length / 1000:.3g}k" if length < 10**6 else f"{length / 1e6:.3g}M"


def _table(definition: Definition, workloads: Sequence[Workload], *, is_weighted: bool) -> Html:
    axes = definition.var_axes
    columns = [("workload", ""), *((name, "n") for name in axes), ("calls", "n"), ("origin", ""), ("inputs", "")]
    rows: list[Sequence[Cell]] = []
    for each in workloads[:_MOST_ROWS]:
        calls: Cell = (f"{each.count:,}", each.count) if each.count else (NOTHING, None)
        lengths: list[Cell] = [
            (f"{each.axes[name]:,}", each.axes[name]) if name in each.axes else (NOTHING, None) for name in axes
        ]
        origin = each.origin or ""
        cells: list[Cell] = [(tag("code", each.uuid[:8], title=each.uuid), each.uuid), *lengths, calls]
        rows.append([*cells, (origin or NOTHING, origin), _inputs(each)])
    if not is_weighted:
        place = len(axes) + 1
        columns.pop(place)
        rows = [[*row[:place], *row[place + 1 :]] for row in rows]
    return make_table(columns, rows, label=f"Workloads of {definition.name}")


def _inputs(workload: Workload) -> Cell:
    kinds = ((RandomInput, "random"), (SafetensorsInput, "from blobs"), (ScalarInput, "scalar"))
    counted = Counter(next(word for kind, word in kinds if isinstance(spec, kind)) for spec in workload.inputs.values())
    text = ", ".join(f"{number} {word}" for word, number in counted.items())
    return join([text]), text
