"""The standings over the whole dataset, device by device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fib_tools.evaluate.report.report_schema import DefinitionReport, DeviceReport, Measurement, Report
from fib_tools.model.evidence import Evidence
from fib_tools.publish.markup import Html, tag
from fib_tools.publish.report_cells import name_device
from fib_tools.publish.report_devices import summarise_device
from fib_tools.publish.report_marks import Marks
from fib_tools.publish.report_plots import list_points
from fib_tools.publish.view.catalogue import Entry
from fib_tools.publish.view.frame import Page, show_problems
from fib_tools.publish.view.paths import LEADERBOARD, definition_path, link

__all__ = ["MOST_POINTS", "build_leaderboard_page", "choose_points"]

MOST_POINTS = 600
"""Of a device: more make a cloud, and a heavy page."""


def choose_points(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Choose the measurements whose Evidence is read: of each device some of every speed, one where nothing passed."""
    by_device: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        if m.evidence:
            by_device.setdefault((m.device, m.measured_by), []).append(m)
    chosen: list[Measurement] = []
    for own in by_device.values():
        ranked = sorted((m for m in own if m.passed), key=lambda m: (m.percent or 0.0, m.definition, m.workload))
        chosen += ranked[:: -(-len(ranked) // MOST_POINTS) or 1] or own[:1]
    return chosen


def build_leaderboard_page(
    report: Report, evidence: Mapping[str, Evidence], problems: Sequence[str], entries: Sequence[Entry]
) -> Page:
    """Build the page of standings; `evidence` is that of the chosen measurements, `entries` have pages."""
    pages = {
        (entry.at.op_type, entry.definition.name): definition_path(entry.at.op_type, entry.at.definition)
        for entry in entries
    }
    devices = report.devices
    links = (tag("a", name_device(device), href=f"#device-{place}") for place, device in enumerate(devices))
    body = [
        tag("h1", "Leaderboard"),
        tag(
            "p",
            "As the Traces tell it; the page of a Definition holds each figure against its evidence.",
            class_="lead",
        ),
        *([tag("nav", *links, class_="jumps", aria_label="Devices")] if len(devices) > 1 else []),
        *show_problems("These cannot be read", tuple(problems)),
        *(_device(place, device, report, evidence, pages) for place, device in enumerate(devices)),
        *([] if devices else [tag("p", "Nothing was measured yet: fib bench writes Traces.", class_="card dim")]),
    ]
    return Page(path=LEADERBOARD, title="Leaderboard", body=tuple(body), section=LEADERBOARD)


def _device(
    place: int,
    device: DeviceReport,
    report: Report,
    evidence: Mapping[str, Evidence],
    pages: Mapping[tuple[str, str], str],
) -> Html:
    def find(definition: DefinitionReport) -> str | None:
        path = pages.get((definition.op_type, definition.definition))
        return link(path, of=LEADERBOARD) if path else None

    definitions = [d for d in report.definitions if (d.device, d.measured_by) == (device.device, device.measured_by)]
    points = list_points(((None, m) for m in report.measurements if _is_on(m, device)), evidence)
    parts = summarise_device(device, definitions, Marks(device, definitions), points, link=find)
    return tag("section", *parts, id=f"device-{place}", class_="device")


def _is_on(m: Measurement, device: DeviceReport) -> bool:
    return (m.device, m.measured_by) == (device.device, device.measured_by)
