"""Our traces in Perfetto's own UI, drawn by Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import chromium
from example_timeline import make_timeline
from fib_tools.capture.perfetto import format_trace
from perfetto_ui import TraceView, serve_ui
from trace_processor import PACKAGE

TIMELINE = make_timeline(layers=2, modules=2, operators=3)
WHITE_OR_NOTHING = {(255, 255, 255, 255), (0, 0, 0, 0)}
DEPTHS = {"model": 0, "layer": 1, "module": 2, "operator": 3, "step": 4, "kernel": 0}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    binary = chromium.find_chromium()
    if binary is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    if not PACKAGE.is_dir():
        pytest.skip("Perfetto's UI is not installed: make clients")
    with chromium.start_chromium(binary, tmp_path_factory.mktemp("chromium") / "profile") as started:
        started.resize(1600, 1000)
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_ui(tmp_path_factory.mktemp("ui"), PACKAGE, format_trace(TIMELINE)) as url:
        yield url


@pytest.fixture
def view(browser: chromium.Browser, address: str) -> TraceView:
    return TraceView(browser, address)


def test_the_trace_opens_without_a_dialog_or_an_error(view: TraceView, browser: chromium.Browser, address: str) -> None:
    assert view.list_dialogs() == []
    assert view.list_errors() == []
    server = address.removesuffix("view/")
    assert [url for url in browser.list_requests() if not url.startswith((server, "data:"))] == []


def test_threads_and_counters_are_tracks(view: TraceView) -> None:
    tracks = {"host 1", "device 2", "memory", "achieved bandwidth (GB/s)"}
    assert tracks <= set(view.list_tracks())


def test_every_slice_is_drawn_where_and_when_it_was(view: TraceView) -> None:
    marks = [
        (span.track_name, DEPTHS[span.kind], (span.start_ns + span.end_ns) / 2 / 1e9)
        for span in TIMELINE.spans
        if span.kind in DEPTHS
    ]
    colours = view.read_colours(marks)
    assert len(colours) == len(TIMELINE.spans)
    assert not WHITE_OR_NOTHING & set(colours)
    (between,) = view.read_colours([("host", 3, (TIMELINE.spans[0].start_ns + 50) / 1e9)])
    assert between in WHITE_OR_NOTHING


def test_a_selected_operator_shows_its_tensors_and_its_arrows(
    view: TraceView, browser: chromium.Browser, tmp_path: Path
) -> None:
    place = next(place for place, span in enumerate(TIMELINE.spans) if span.name == "proj_1")
    text = view.select("host", place + 1)  # the run as a whole is the first slice
    lines = {tuple(line.split("\t")) for line in text.splitlines()}
    assert ("Name", "proj_1") in lines
    assert ("debug.definition", "gemm_n256_k256") in lines
    assert ("debug.inputs.x.shape", "[1, 16, 256]") in lines
    assert ("debug.outputs.out.bytes", "8192") in lines
    ends = browser.evaluate("globals.connectedFlows.map((flow) => [flow.begin.sliceName, flow.end.sliceName])")
    assert ["proj_0", "proj_1"] in ends
    assert ["proj_1", "proj_2"] in ends
    assert ["proj_1", "kernel_of_proj_1"] in ends
    assert len(browser.picture(tmp_path / "perfetto.png")) > 20_000
    assert view.list_errors() == []
