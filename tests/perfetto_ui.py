"""Perfetto's own UI from its package, on a local server, with one trace open in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import chromium

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Perfetto</title><link rel="icon" href="data:,"></head>
<body>
<div id="timeline_data_source" hidden>{url}/trace.pftrace</div>
<div id="timeline_main"></div>
<script>
const ask = window.fetch;
// a trace processor that happens to run on this machine is not asked
window.fetch = (what, ...rest) => String(what).includes("//127.0.0.1:9001/") ? Promise.reject(new Error()) : ask(what, ...rest);
</script>
<script src="{url}/ui/frontend_bundle.js"></script>
</body>
</html>
"""


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def serve_ui(folder: Path, package: Path, trace: bytes) -> Iterator[str]:
    """Serve the UI with the trace; the address is that of its page."""
    with serve_files(folder) as url:
        (folder / "ui").symlink_to(package, target_is_directory=True)
        (folder / "trace.pftrace").write_bytes(trace)
        (folder / "view").mkdir()
        (folder / "view" / "index.html").write_text(PAGE.format(url=url), encoding="utf-8")
        yield f"{url}/view/"


@contextmanager
def serve_files(folder: Path) -> Iterator[str]:
    """Serve a folder as any web server does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


IDLE = (
    "globals.state.engines['0']?.ready && globals.numQueuedQueries === 0 && !document.querySelector('.progress-anim')"
)
"""Loaded, and nothing more is asked of the trace processor."""
PIXELS = """(marks) => marks.map(([thread, depth, seconds]) => {
  const track = Object.values(globals.state.tracks).find((each) => each.name.startsWith(thread));
  const box = document.getElementById(`track_${track.id}`).getBoundingClientRect();
  const canvas = document.querySelector(".scrolling-panel-container canvas");
  const at = canvas.getBoundingClientRect();
  const x = globals.frontendLocalState.timeScale.timeToPx(seconds);
  const y = box.top - at.top + 4 + 18 * depth + 2;
  return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
})"""
"""The colours at the upper edge of slices, above their names: the UI draws a slice 18 pixels high, 4 below the track's top."""


class TraceView:
    """The UI as a person sees it."""

    def __init__(self, browser: chromium.Browser, url: str) -> None:
        self._browser = browser
        browser.open_url(url)
        self._settle()

    def _settle(self) -> None:
        self._browser.wait_for(IDLE)
        self._browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def list_tracks(self) -> list[str]:
        tracks: list[str] = self._browser.evaluate("Object.values(globals.state.tracks).map((track) => track.name)")
        return tracks

    def read_colours(self, marks: list[tuple[str, int, float]]) -> list[tuple[int, ...]]:
        """Read what is drawn at a depth of a thread's track at a moment."""
        return [tuple(colour) for colour in self._browser.evaluate(f"({PIXELS})({json.dumps(marks)})")]

    def select(self, thread: str, slice_id: int) -> str:
        """Select a slice; the text of its panel."""
        track = f"Object.values(globals.state.tracks).find((each) => each.name.startsWith({json.dumps(thread)})).id"
        self._browser.evaluate(
            f"globals.dispatch(Actions.selectChromeSlice({{id: {slice_id}, trackId: {track}, table: 'slice'}}))"
        )
        self._browser.wait_for("document.querySelector('.details-table')")
        self._settle()
        text: str = self._browser.evaluate("document.querySelector('.details-panel').innerText")
        return text

    def list_dialogs(self) -> list[str]:
        dialogs: list[str] = self._browser.evaluate(
            "[...document.querySelectorAll('.modal-content')].map((dialog) => dialog.innerText)"
        )
        return dialogs

    def list_errors(self) -> list[dict[str, Any]]:
        """What went wrong on the page; the UI's own chatter is not of the kind."""
        kinds = ("Runtime.exceptionThrown", "Network.loadingFailed")
        return [
            event
            for event in self._browser.list_trouble()
            if event["method"] in kinds
            or event["params"].get("entry", {}).get("level") == "error"
            or event["params"].get("type") == "error"
        ]
