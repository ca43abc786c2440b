"""The pages of `fib view` in a real browser: every page, at a desk's and a phone's width, light and dark, held against axe."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import chromium
import example_dataset
from bench_dataset import HOSTILE
from fib_tools.phases import view
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.view import view_dataset
from fib_tools.publish.view import timelines_page
from fib_tools.publish.view.paths import definition_path
from perfetto_ui import serve_files
from view_world import GEMM, NORM, ODD, write_world

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
WIDTHS = (1280, 390)
PAGES = {
    "overview": "",
    "models": "models.html",
    "model": "models/kimi-k2.html",
    "definitions": "definitions.html",
    "definition": f"definitions/rmsnorm/{NORM}.html",
    "gemm": f"definitions/gemm/{GEMM}.html",
    "solution": f"solutions/ana/rmsnorm/{NORM}/cute_dsl_rmsnorm.html",
    "leaderboard": "leaderboard.html",
    "timelines": "timelines.html",
    "hostile": "definitions/copy/hostile.html",
    "odd": definition_path("copy", ODD),
}
WRONG = "axe.run(document, {resultTypes: ['violations']}).then((said) => said.violations.map((each) => [each.id, each.nodes.map((node) => node.html.slice(0, 200))]))"
"""Every rule of axe, best practices included."""
STICKS_OUT = """[...document.querySelectorAll('main *')].filter((each) => {
  if (each.closest('.scroll, .source, svg, .area, .dots, thead')) return false;
  const card = each.closest('.card');
  return card && each.getBoundingClientRect().right > card.getBoundingClientRect().right + 1;
}).map((each) => each.outerHTML.slice(0, 120))"""
"""What leaves its frame to the right; what can be scrolled, and plots, may."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    binary = chromium.find_chromium()
    if binary is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with chromium.start_chromium(binary, tmp_path_factory.mktemp("chromium") / "profile") as started:
        yield started


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def make_context(workspace: Path) -> Context:
    return Context(workspace=Workspace(root=workspace), offline=True)


@pytest.fixture(scope="module")
def address(workspace: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "_FRESH_SECONDS", 0.0)
        result = view_dataset(make_context(workspace), port=0, open=False)
    thread = threading.Thread(target=result.serve)
    thread.start()
    yield result.url or ""
    result.stop()
    thread.join()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_without_a_word_and_fits_its_width(
    browser: chromium.Browser, address: str, page: str, width: int
) -> None:
    browser.resize(width, 900)
    browser.open_url(address + PAGES[page])
    assert browser.list_trouble() == []
    assert all(url.startswith(address) for url in browser.list_requests())
    assert browser.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out of the page"
    assert browser.evaluate(STICKS_OUT) == [], "nor out of its frame"
    picture = browser.picture()
    assert struct.unpack(">II", picture[16:24]) == (width, 900)
    assert len(picture) > 8_000, "there is something on it"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing(browser: chromium.Browser, address: str, page: str, width: int, *, dark: bool) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed: make clients")
    browser.resize(width, 900, dark=dark)
    browser.open_url(address + PAGES[page])
    browser.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    browser.evaluate(f"{AXE.read_text(encoding='utf-8')};0")
    assert browser.evaluate(WRONG) == []


@pytest.mark.parametrize("page", ["hostile", "odd", "definitions", "overview", "leaderboard", "models"])
def test_what_a_stranger_wrote_does_not_run(browser: chromium.Browser, address: str, page: str) -> None:
    browser.resize(1280, 900)
    browser.open_url(address + PAGES[page])
    browser.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    if page == "hostile":
        browser.click(".times .ev")
        browser.wait_for("document.querySelector('dialog[open]')")
        assert "ana/</script>" in browser.evaluate("document.querySelector('dialog[open]').innerText")
    assert browser.evaluate("document.title") != "owned"
    assert browser.evaluate("document.querySelectorAll('main img, main script, dialog script').length") == 0
    assert browser.list_trouble() == []


def test_a_script_in_the_page_would_be_refused(browser: chromium.Browser, address: str) -> None:
    browser.open_url(address)
    refused = browser.evaluate(
        "(() => { try { const made = document.createElement('script'); made.textContent = 'document.title = 1'; document.head.append(made); } catch (error) { return error.name; } })()"
    )
    assert refused == "TypeError"
    assert browser.evaluate("document.title") == "flashinfer-trace"
    assert browser.list_trouble(), "the policy says so on the console"


def _list_shown(browser: chromium.Browser) -> list[str]:
    shown: list[str] = browser.evaluate(
        "[...document.querySelectorAll('table[aria-label=\"Definitions\"] tbody tr:not(.hidden) a')].map((link) => link.textContent)"
    )
    return shown


def _fill(browser: chromium.Browser, name: str, value: str) -> None:
    browser.evaluate(
        f"(() => {{ const field = document.querySelector('.filters [name={name}]'); field.value = {json.dumps(value)};"
        " field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_definitions_are_searched_by_the_keyboard_and_filtered(browser: chromium.Browser, address: str) -> None:
    browser.resize(1280, 900)
    browser.open_url(f"{address}definitions.html")
    assert len(_list_shown(browser)) == 5
    browser.press("/", 191)
    assert browser.evaluate("document.activeElement.name") == "search"
    _fill(browser, "search", "H7168 norm")
    assert _list_shown(browser) == [NORM]
    assert browser.evaluate("document.querySelector('.found').textContent") == "1 of 5 Definitions"
    _fill(browser, "search", "")
    _fill(browser, "op_type", "copy")
    assert len(_list_shown(browser)) == 2
    _fill(browser, "state", "measured")
    assert _list_shown(browser) == [HOSTILE]
    assert browser.evaluate("location.search") == "?op_type=copy&state=measured"
    browser.open_url(f"{address}definitions.html?model=kimi-k2&op_type=gemm&state=nonsense")
    assert _list_shown(browser) == [GEMM], "the address alone says it"


def test_a_figure_opens_its_evidence_which_is_fetched_then(browser: chromium.Browser, address: str) -> None:
    browser.resize(1280, 900)
    browser.open_url(address + PAGES["definition"])
    assert not [url for url in browser.list_requests() if url.endswith(".json")]
    browser.evaluate("document.querySelector('.times .ev').focus()")
    browser.press("Enter", 13)
    browser.wait_for("document.querySelector('dialog[open]')")
    assert "landlock" in browser.evaluate("document.querySelector('dialog[open]').innerText")
    assert [url for url in browser.list_requests() if url.endswith(".json")] == [f"{address}data/rmsnorm/{NORM}.json"]
    browser.press("Escape", 27)
    assert browser.evaluate("document.querySelector('dialog[open]')") is None
    assert browser.evaluate("document.activeElement.className") == "ev"


def test_figures_of_another_moment_are_not_shown(browser: chromium.Browser, workspace: Path, address: str) -> None:
    browser.open_url(address + PAGES["hostile"])
    path = "traces/ana/copy/hostile.jsonl"
    lines = (workspace / "flashinfer-trace" / path).read_text(encoding="utf-8")
    again = json.loads(lines.splitlines()[0]) | {"solution": "another"}
    example_dataset.write(workspace / "flashinfer-trace", path, lines + json.dumps(again) + "\n")
    try:
        browser.click(".times .ev")
        browser.wait_for("document.querySelector('dialog[open]')")
        assert "load it again" in browser.evaluate("document.querySelector('dialog[open]').innerText")
    finally:
        example_dataset.write(workspace / "flashinfer-trace", path, lines)


def test_a_model_shows_the_kernels_of_one_tp(browser: chromium.Browser, address: str) -> None:
    browser.open_url(address + PAGES["model"])
    shown = "[...document.querySelectorAll('.kernels > li')].filter((kernel) => kernel.offsetParent).map((kernel) => kernel.querySelector('.kname').textContent)"
    assert set(browser.evaluate(shown)) > {NORM, "gemm_n1_k1"}
    browser.evaluate(
        "(() => { const field = document.querySelector('.choose select'); field.value = '2'; field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    assert "gemm_n1_k1" in browser.evaluate(shown)
    assert NORM not in browser.evaluate(shown)


PERFETTO = b"""<!doctype html><title>waits</title><script>
addEventListener("message", (event) => {
  if (event.data === "PING") event.source.postMessage("PONG", event.origin);
  else {
    const { title, buffer } = event.data.perfetto;
    event.source.postMessage(`seen ${title} ${buffer.byteLength}`, event.origin);
    close();
  }
});
</script>"""


class _Perfetto(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PERFETTO)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def perfetto(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A page that takes a trace as Perfetto's does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Perfetto) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(timelines_page, "PERFETTO", url)
        yield url
        server.shutdown()
        thread.join()


def test_a_trace_is_handed_to_perfetto_when_it_answers(
    browser: chromium.Browser, workspace: Path, address: str, perfetto: str
) -> None:
    browser.open_url(address + PAGES["timelines"])
    assert browser.evaluate("document.querySelector('[data-trace]').dataset.ui") == perfetto
    browser.evaluate(
        "window.seen = new Promise((done) => addEventListener('message', ({data}) => { if (data.startsWith('seen')) done(data); })); 0"
    )
    browser.click("[data-trace]")
    trace = workspace / "traces" / "kimi-k2_layer0.pftrace"
    assert browser.evaluate("window.seen") == f"seen {trace.name} {trace.stat().st_size}"
    assert browser.evaluate("document.getElementById('perfetto').hidden")


def test_without_a_network_it_is_said_what_to_do(browser: chromium.Browser, address: str) -> None:
    browser.open_url(address + PAGES["timelines"])
    browser.evaluate("Object.defineProperty(navigator, 'onLine', {value: false}); 0")
    browser.click("[data-trace]")
    assert "download the trace" in browser.evaluate("document.getElementById('perfetto').innerText")
    link = browser.evaluate("document.querySelector('a[download]').href")
    assert link == f"{address}timelines/kimi-k2_layer0.pftrace"


@pytest.fixture(scope="module")
def files(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above the site's own, as a web server has it."""
    folder = tmp_path_factory.mktemp("web")
    view_dataset(make_context(workspace), out=folder / "deep" / "site")
    return folder


@pytest.mark.parametrize("page", ["overview", "definitions", "definition", "leaderboard", "model"])
def test_the_files_open_from_any_web_server(browser: chromium.Browser, files: Path, page: str) -> None:
    with serve_files(files) as url:
        browser.resize(1280, 900)
        browser.open_url(f"{url}/deep/site/{PAGES[page] or 'index.html'}")
        assert browser.list_trouble() == []
        assert browser.evaluate("document.styleSheets.length") == 2
        assert all(asked.startswith(f"{url}/deep/site/") for asked in browser.list_requests())
        if page == "definition":
            browser.click(".times .ev")
            browser.wait_for("document.querySelector('dialog[open]')")
            assert "landlock" in browser.evaluate("document.querySelector('dialog[open]').innerText")
