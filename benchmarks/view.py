"""How fast the pages of `fib view` paint on a dataset of 500 Definitions, in a real browser, and what axe says of them.

    python benchmarks/view.py [--definitions 500] [--workspace FOLDER] [--shots FOLDER] [--rounds 5]

The dataset is made first, in a folder that is removed, unless `--workspace` names one, which is made once and kept. The
server is the command itself, in a process of its own. Each page is opened in each round with an empty cache; shown are
medians of what the browser measured from the click: first byte, first contentful paint, load; and the bytes of the
page with its style and scripts. `--shots` keeps a picture of what is seen of each page first. Exit status 1: an error on a console, a page
that does not fit its width, or a violation that axe finds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from view_dataset import fill_dataset, onboard_models  # noqa: E402

import chromium  # noqa: E402  # the path must be there first
from example_timeline import make_timeline  # noqa: E402
from fib_tools.capture.perfetto import format_trace  # noqa: E402
from fib_tools.dataset.store import Dataset, count_documents  # noqa: E402

AXE = ROOT / "tests" / "clients" / "node_modules" / "axe-core" / "axe.min.js"
WIDTHS = (1280, 390)
PAGES = {
    "overview": "index.html",
    "models": "models.html",
    "model": "models/deepseek-v3.html",
    "definitions": "definitions.html",
    "definition": "definitions/gemm/gemm_n384_k7168.html",
    "definition, MLA": "definitions/mla_paged/mla_paged_decode_h8_ckv512_kpe64_ps64.html",
    "solution": "solutions/claude-opus/gemm/gemm_n384_k7168/triton_rows_gemm.html",
    "leaderboard": "leaderboard.html",
    "timelines": "timelines.html",
}
TIMES = """(async () => {
  const paint = await new Promise((done) => new PerformanceObserver((list) => {
    const [found] = list.getEntriesByName("first-contentful-paint");
    if (found) done(found);
  }).observe({ type: "paint", buffered: true }));
  const entry = performance.getEntriesByType("navigation")[0];
  const all = [entry, ...performance.getEntriesByType("resource")];
  return [entry.responseStart, paint.startTime, entry.loadEventEnd, entry.decodedBodySize,
    all.reduce((sum, each) => sum + each.decodedBodySize, 0), document.getElementsByTagName("*").length];
})()"""
WRONG = (
    "axe.run(document, {resultTypes: ['violations']}).then((said) => said.violations.map((each) => "
    "`${each.id}: ${each.nodes[0].html.slice(0, 120)}`))"
)


def make_workspace(folder: Path, definitions: int) -> None:
    """Make the dataset, and one trace for Perfetto."""
    began = time.perf_counter()
    say = lambda text: print(f"[{time.perf_counter() - began:5.1f} s] {text}", file=sys.stderr)  # noqa: E731
    onboard_models(folder, definitions, say)
    fill_dataset(Dataset(folder / "flashinfer-trace"), definitions)
    (folder / "traces").mkdir(exist_ok=True)
    trace = format_trace(make_timeline(layers=2, modules=2, operators=3))
    (folder / "traces" / "llama-3.1-8b_layer0.pftrace").write_bytes(trace)
    say("the dataset is made")


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, float]]:
    """Start the command; give its address, and the seconds until it was told."""
    command = [sys.executable, "-m", "fib_tools", "view", "--workspace", str(folder)]
    began = time.perf_counter()
    with subprocess.Popen([*command, "--port", "0", "--no-open", "--json", "--quiet"], stdout=subprocess.PIPE) as child:
        try:
            said = b""
            while child.stdout and not said.endswith(b"}\n") and child.poll() is None:
                said += child.stdout.readline()
            yield json.loads(said)["url"], time.perf_counter() - began
        finally:
            child.send_signal(signal.SIGINT)
    if child.returncode:
        sys.exit(f"fib view ended with {child.returncode}")


def measure(browser: chromium.Browser, url: str, rounds: int) -> list[float]:
    """Open a page a few times, with nothing in the cache; medians of times and sizes."""
    found = []
    for _ in range(rounds):
        browser.clear_cache()
        browser.open_url(url)
        browser.list_trouble()
        found.append(browser.evaluate(TIMES))
    return [statistics.median(values) for values in zip(*found, strict=True)]


def check(browser: chromium.Browser, url: str, width: int) -> list[str]:
    """Find what is wrong with a page: words on the console, what sticks out, what axe says in light and dark."""
    wrong = []
    for dark in (False, True):
        browser.resize(width, 900, dark=dark)
        browser.open_url(url)
        wrong += [str(event)[:200] for event in browser.list_trouble()]
        if browser.evaluate("document.documentElement.scrollWidth") != width:
            wrong.append(f"it is {browser.evaluate('document.documentElement.scrollWidth')} wide")
        browser.evaluate(f"{AXE.read_text(encoding='utf-8')};0")
        wrong += [f"axe: {said}" for said in browser.evaluate(WRONG)]
    browser.resize(width, 900)
    return wrong


def time_first_leaderboard(url: str) -> float:
    """Ask for the leaderboard at once, before the server has read the Traces."""
    began = time.perf_counter()
    urlopen(f"{url}leaderboard.html").read()  # noqa: S310  # of this machine
    return time.perf_counter() - began


def run(folder: Path, options: argparse.Namespace) -> int:
    """Measure and check every page; the number of faults."""
    binary = chromium.find_chromium()
    if binary is None or not AXE.exists():
        sys.exit("needs Chromium (apt-get install chromium) and axe-core (make clients)")
    counts = count_documents(Dataset(folder / "flashinfer-trace").files())
    print(", ".join(f"{count} files of {kind}" for kind, count in counts.items()))
    faults: list[str] = []
    with serve(folder) as (url, start), tempfile.TemporaryDirectory() as profile:
        print(
            f"address told after {start:.2f} s; the leaderboard, asked for at once: {time_first_leaderboard(url):.2f} s\n"
        )
        print(
            "page                width | first byte ms  first paint ms  load ms |  page kB  all kB  elements | faults"
        )
        with chromium.start_chromium(binary, Path(profile) / "profile") as browser:
            for name, path in PAGES.items():
                for width in WIDTHS:
                    browser.resize(width, 900)
                    byte, paint, load, size, whole, elements = measure(browser, url + path, options.rounds)
                    wrong = check(browser, url + path, width)
                    faults += [f"{name}, {width}: {text}" for text in wrong]
                    if options.shots:
                        options.shots.mkdir(parents=True, exist_ok=True)
                        browser.picture(options.shots / f"{name.replace(', ', '_')}_{width}.png")
                    print(
                        f"{name:20s}{width:5d} | {byte:13.0f} {paint:15.0f} {load:8.0f} | {size / 1000:8.0f} {whole / 1000:7.0f}"
                        f" {elements:9.0f} | {len(wrong)}",
                        flush=True,
                    )
    for fault in faults:
        print(fault)
    print(f"\nerrors on a console, pages too wide, violations of axe, light and dark: {len(faults)}")
    return len(faults)


def time_files(folder: Path) -> None:
    """Write the site as files, twice."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "fib_tools", "view", "--workspace", str(folder), "--out", f"{out}/site"]
        for _ in range(2):
            began = time.perf_counter()
            done = subprocess.run([*command, "--json", "--quiet"], capture_output=True, check=True)
            said: dict[str, Any] = json.loads(done.stdout)
            seconds = time.perf_counter() - began
            size = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
            print(
                f"fib view --out: {said['files']} files, {said['written']} written, {size / 1e6:.0f} MB, {seconds:.1f} s"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--definitions", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--shots", type=Path)
    options = parser.parse_args()
    browser = subprocess.run(
        [chromium.find_chromium() or "true", "--version"], capture_output=True, text=True, check=True
    )
    axe = json.loads((AXE.parent / "package.json").read_text(encoding="utf-8"))["version"] if AXE.exists() else "none"
    print(
        f"# {date.today().isoformat()}, Python {platform.python_version()}, {browser.stdout.strip()}, axe-core {axe}, "  # noqa: DTZ011
        f"pygments {version('pygments')}, {os.cpu_count()} cores, Linux {platform.release()}"
    )
    with tempfile.TemporaryDirectory() as made:
        folder = options.workspace or Path(made)
        if not (folder / "flashinfer-trace").exists():
            make_workspace(folder, options.definitions)
        faults = run(folder, options)
        time_files(folder)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
