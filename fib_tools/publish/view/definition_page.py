"""The page of one Definition: what it is, its reference, its Workloads, what was measured, and its Solutions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fib_tools.dataset.layout import Location
from fib_tools.errors import FormatError
from fib_tools.evaluate.report.report_reading import Reading
from fib_tools.evaluate.report.report_schema import DeviceReport, Report
from fib_tools.evaluate.report.report_tables import build_report
from fib_tools.model.base import to_document
from fib_tools.model.canonical import content_hash
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Solution
from fib_tools.model.tags import Tag, parse_tag
from fib_tools.model.workload import Workload
from fib_tools.publish.markup import Html, breakable, join, tag
from fib_tools.publish.report_cells import name_device
from fib_tools.publish.report_data import build_data
from fib_tools.publish.report_definitions import Rows, show_solutions, show_times
from fib_tools.publish.report_devices import index_rows, show_rejections
from fib_tools.publish.report_marks import Marks
from fib_tools.publish.report_plots import draw_bandwidth, draw_curves, draw_roofline, draw_speedups, list_points
from fib_tools.publish.view.catalogue import Entry
from fib_tools.publish.view.cells import card, count, fact_list, list_table, status_chip
from fib_tools.publish.view.frame import Page, crumbs, show_problems
from fib_tools.publish.view.paths import (
    DEFINITIONS,
    data_path,
    definition_path,
    definitions_of,
    link,
    model_path,
    solution_path,
)
from fib_tools.publish.view.signature import show_axes, show_call, show_constraints, show_tensors
from fib_tools.publish.view.source_code import show_source
from fib_tools.publish.view.workloads import describe_lengths, show_workloads

__all__ = ["Dossier", "build_definition_data", "build_definition_page"]

_PARTS = (
    ("Signature", "signature"),
    ("Reference", "reference"),
    ("Workloads", "workloads"),
    ("Results", "results"),
    ("Solutions", "solutions"),
)
_TAG_NAMES = {
    "fi_api": "FlashInfer API",
    "fi_name": "FlashInfer name",
    "tp": "TP",
    "ep": "EP",
    "stage": "stage",
    "quantization": "quantization",
}


@dataclass(frozen=True, kw_only=True)
class Dossier:
    """Everything that a dataset has of one Definition."""

    entry: Entry
    workloads: tuple[Workload, ...]
    solutions: tuple[tuple[Location, Solution], ...]
    reading: Reading
    problems: tuple[str, ...] = ()


def build_definition_data(dossier: Dossier) -> dict[str, Any]:
    """Build what the page's figures open: every measurement, and the Evidence of each."""
    report = build_report(dossier.reading)
    labels = {(d.definition, w.uuid): w.label for d in report.definitions for w in d.workloads}
    data = build_data(report.measurements, labels, dossier.reading.evidence)
    return {**data, "stamp": _stamp(report)}


def _stamp(report: Report) -> str:
    return content_hash([to_document(m) for m in report.measurements])[:16]


def build_definition_page(dossier: Dossier) -> Page:
    """Build the page of a Definition."""
    entry, definition = dossier.entry, dossier.entry.definition
    at = entry.at
    path = definition_path(at.op_type, at.definition)
    report = build_report(dossier.reading)
    body = [
        crumbs(("Definitions", DEFINITIONS), (definition.op_type, definitions_of(definition.op_type)), of=path),
        _head(entry, path),
        *show_problems("Not to be trusted", dossier.problems),
        *_signature(definition, dossier.workloads),
        card(
            "Reference",
            show_source(definition.reference, label=f"reference of {definition.name}", file="reference.py"),
            anchor="reference",
        ),
        card(
            "Workloads",
            *show_workloads(definition, dossier.workloads),
            anchor="workloads",
            aside=count(len(dossier.workloads), "Workload") if dossier.workloads else "",
        ),
        tag("section", tag("h2", "Results"), *_results(report, dossier.reading), id="results", class_="results"),
        _solutions(entry, dossier.solutions, path),
    ]
    has_data = bool(report.measurements)
    return Page(
        path=path,
        title=definition.name,
        body=tuple(body),
        section=DEFINITIONS,
        data=data_path(at.op_type, at.definition) if has_data else "",
        stamp=_stamp(report) if has_data else "",
    )


def _head(entry: Entry, path: str) -> Html:
    definition = entry.definition
    tags = [_read_tag(text) for text in definition.tags]
    values = {name: [item.value or "" for item in tags if item.key == key] for key, name in _TAG_NAMES.items()}
    models = join((tag("a", slug, href=link(model_path(slug), of=path)) for slug in entry.models), ", ")
    known = {*_TAG_NAMES, "model", "status"}
    others = join((tag("code", str(item)) for item in tags if item.key not in known), " ")
    facts = [
        ("op_type", definition.op_type),
        ("models", models),
        *((name, join((breakable(value) for value in own), ", ")) for name, own in values.items()),
        ("other tags", others),
    ]
    jumps = (tag("a", name, href=f"#{anchor}") for name, anchor in _PARTS)
    return tag(
        "div",
        tag("h1", breakable(definition.name), " ", status_chip(entry.status), class_="name"),
        tag("p", definition.description or "", class_="lead"),
        fact_list(facts),
        tag("nav", *jumps, class_="jumps", aria_label="On this page"),
        class_="top",
    )


def _read_tag(text: str) -> Tag:
    try:
        return parse_tag(text)
    except FormatError:
        return Tag(key=text)


def _signature(definition: Definition, workloads: Sequence[Workload]) -> Iterable[Html]:
    tensors = card("Signature", show_call(definition), show_tensors(definition), anchor="signature")
    axes = card("Axes", show_axes(definition, describe_lengths(definition, workloads)), *show_constraints(definition))
    yield tag("div", tensors, axes, class_="split")


def _results(report: Report, reading: Reading) -> Iterable[Html]:
    if not report.devices:
        yield tag("p", "Nothing was measured yet: fib bench writes Traces.", class_="card dim")
    for device in report.devices:
        yield tag("div", *_device(device, report, reading), class_="device")


def _device(device: DeviceReport, report: Report, reading: Reading) -> Iterable[Html]:
    own = [d for d in report.definitions if (d.device, d.measured_by) == (device.device, device.measured_by)]
    marks = Marks(device, own)
    indexed = index_rows(device, report.measurements)
    timers = f"timed with {', '.join(device.timers)}, " if device.timers else ""
    aside = f"{timers}{device.passed} of {count(device.evaluations, 'evaluation')} passed"
    yield tag("h3", name_device(device), tag("span", aside, class_="dim"), class_="device-name")
    if device.is_cpu:
        yield tag("p", "Measured on a CPU, to learn the loop: these are no figures of a GPU.", class_="alarm card")
    for definition in own:
        rows: Rows = indexed[definition.definition]
        points = list_points(rows.values(), reading.evidence)
        plots = [
            ("Leaderboard", show_solutions(definition, marks)),
            ("Workload by workload", draw_speedups(definition, rows, marks)),
            ("fast_p", draw_curves(device.curves, marks) if device.curves else None),
            ("Roofline", draw_roofline(points, marks)),
            ("Bandwidth", draw_bandwidth(points, marks)),
        ]
        yield tag("div", *(_plot(title, drawn) for title, drawn in plots if drawn is not None), class_="cols")
        yield _plot("Times", show_times(definition, rows, marks))
    yield from show_rejections(device, marks)


def _plot(title: str, drawn: Html) -> Html:
    return tag("section", tag("h4", title), drawn, class_="card")


def _solutions(entry: Entry, solutions: Sequence[tuple[Location, Solution]], path: str) -> Html:
    if not solutions:
        text = "None yet: fib baselines writes the kernels that people run, fib optimize drafts others."
        return card("Solutions", tag("p", text, class_="dim"), anchor="solutions")
    rows = []
    for at, solution in solutions:
        lines = sum(source.content.count("\n") for source in solution.sources)
        rows.append(
            (
                tag("a", breakable(f"{solution.author}/{solution.name}"), href=link(solution_path(at), of=path)),
                solution.spec.language.value,
                ", ".join(solution.spec.target_hardware),
                f"{count(len(solution.sources), 'file')}, {count(lines, 'line')}",
                solution.description or "",
            )
        )
    columns = ("Solution", "language", "made for", "source", "what it does")
    table = list_table(columns, rows, label=f"Solutions of {entry.definition.name}")
    return card("Solutions", table, anchor="solutions", aside=count(len(solutions), "Solution"))
