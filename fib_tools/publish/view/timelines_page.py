"""Traces for Perfetto: each opens in its UI, which takes it from this page and sends it nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from fib_tools.publish.markup import Html, tag
from fib_tools.publish.report_scales import format_bytes
from fib_tools.publish.view.cells import list_table
from fib_tools.publish.view.frame import Page
from fib_tools.publish.view.paths import TIMELINES, timeline_path

__all__ = ["Timeline", "build_timelines_page"]

PERFETTO = "https://ui.perfetto.dev"
"""It takes a trace by postMessage, once it has answered a ping; the trace stays in the browser."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """A trace of a block or a whole model, in the workspace."""

    file: str
    size: int
    made: datetime


def build_timelines_page(timelines: Sequence[Timeline]) -> Page:
    """Build the list of traces."""
    said = (
        "Perfetto's page is on the web; the trace goes to it inside this browser and is not uploaded. "
        "Without a network, download the file and open it in a copy of the UI of your own, or read it with trace_processor."
    )
    rows = ((tag("code", each.file), *_describe(each), _open(each)) for each in timelines)
    table = list_table(("trace", "size", "made", "open"), rows, label="Traces for Perfetto")
    body = [
        tag("h1", "Timelines"),
        tag("p", said, class_="lead"),
        tag("section", table, class_="card")
        if timelines
        else tag("p", "None yet: fib trace block writes one of a transformer block.", class_="card dim"),
        tag("p", "", id="perfetto", role="status", class_="alarm card", hidden=True),
    ]
    return Page(path=TIMELINES, title="Timelines", body=tuple(body), section=TIMELINES)


def _describe(timeline: Timeline) -> tuple[str, str]:
    return format_bytes(timeline.size), timeline.made.strftime("%Y-%m-%d %H:%M")


def _open(timeline: Timeline) -> Html:
    path = timeline_path(timeline.file)
    button = tag(
        "button",
        "Open in Perfetto",
        type="button",
        class_="button",
        data_trace=path,
        data_ui=PERFETTO,
        data_title=timeline.file,
    )
    return tag("span", button, " ", tag("a", "Download", href=path, download=timeline.file), class_="actions")
