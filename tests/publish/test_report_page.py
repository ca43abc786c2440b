"""The page, read as text and opened in a real browser."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

import chromium
import example_dataset
from bench_dataset import CPU, H200, HOSTILE, Case, make_trace, sample_cases, write_cases
from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.report.report_compare import compare_readings
from fib_tools.evaluate.report.report_reading import read_measurements
from fib_tools.evaluate.report.report_tables import build_report
from fib_tools.publish import report_data
from fib_tools.publish.report_page import format_page

WIDTHS = (400, 800, 1600)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of everything: two devices, another tool, failures, a comparison, problems, hostile names."""
    root = tmp_path_factory.mktemp("page")
    cases = list(sample_cases(hostile=True))
    cpu = [Case(definition="d", op_type="copy", author="ana", solution="s", axes={"n": 4}, gpu=CPU)]
    b200 = H200.model_copy(update={"name": "NVIDIA B200"})
    foreign = [Case(definition="d", op_type="copy", author="ana", solution=HOSTILE, axes={"n": 4}, gpu=b200)]
    data, other = root / "data", root / "other"
    write_cases(data, [*cases, *cpu])
    write_cases(data, foreign, is_foreign=True)
    reading = read_measurements(Dataset(data))
    second = read_measurements(Dataset(write_cases(other, cases, seed=1)))
    comparison = compare_readings(("one", reading), (HOSTILE, second))
    text = format_page(
        build_report(reading), reading.evidence, subject=HOSTILE, comparison=comparison, problems=[HOSTILE] * 60
    )
    path = root / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    binary = chromium.find_chromium()
    if binary is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with chromium.start_chromium(binary, tmp_path_factory.mktemp("chromium") / "profile") as started:
        yield started


@pytest.fixture
def opened(browser: chromium.Browser, page: Path) -> chromium.Browser:
    browser.resize(1200, 900)
    browser.open(page)
    return browser


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_nothing_from_elsewhere_and_runs_its_own_script_alone(page: Path) -> None:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert [tag for tag, _ in reader.tags if tag in {"img", "iframe", "link", "object", "embed", "base"}] == []
    assert len([tag for tag, _ in reader.tags if tag == "script"]) == 2, "the data, and what reads it"
    assert not [name for _, attrs in reader.tags for name in attrs if name.startswith("on")]
    links = {attrs["href"] or "" for _, attrs in reader.tags if "href" in attrs}
    assert all(re.fullmatch(r"#[a-z0-9-]+", link) for link in links)
    (policy,) = (attrs["content"] or "" for _, attrs in reader.tags if attrs.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_headings_go_down_one_step_at_a_time(page: Path) -> None:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_row_has_its_data(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert max(int(place) for place in re.findall(r'data-m="(\d+)"', text)) == len(data["rows"]) - 1
    assert set(data["evidence"]) == {row["evidence"] for row in data["rows"] if "evidence" in row}
    assert {len(series["samples"]) for item in data["evidence"].values() for series in item.get("series", ())} == {60}


def test_of_many_samples_and_much_evidence_the_page_keeps_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_data, "MOST_SAMPLES", 10)
    monkeypatch.setattr(report_data, "MOST_EVIDENCE", 1)
    cases = [
        Case(definition="d", op_type="copy", author="ana", solution="s", axes={"n": size}, noise=0.1) for size in (1, 2)
    ]
    reading = read_measurements(Dataset(write_cases(tmp_path, cases)))
    data = report_data.build_data(
        reading.measurements, {("d", m.workload): "n" for m in reading.measurements}, reading.evidence
    )
    (evidence,) = data["evidence"].values()
    assert [(series["taken"], len(series["samples"])) for series in evidence["series"]] == [(60, 10), (60, 10)]
    assert evidence["seed"] == str((1 << 60) + 12345), "a number would lose its last digits in JavaScript"


def test_numbers_beyond_all_measure_do_not_break_the_page(tmp_path: Path) -> None:
    case = Case(definition="d", op_type="copy", author="ana", solution="s", axes={"n": 10**40})
    slow, other = replace(case, solution="slow"), replace(case, author="baseline")
    write_cases(tmp_path, [case, slow, other])
    for path in tmp_path.glob("evidence/*/*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        document["roofline"] |= {"bytes": 10**400, "percent": "Infinity", "bandwidth": "Infinity"}
        document["series"][1]["samples"] = ["Infinity", "NaN", -1.0]
        document["errors"]["output"]["max_absolute"] = "Infinity"
        path.write_text(json.dumps(document), encoding="utf-8")
    line = make_trace(slow)
    for latency in (0.0, 1e-320, "Infinity"):
        line["evaluation"]["performance"]["latency_ms"] = latency
        example_dataset.write(tmp_path, f"traces/{latency}/copy/d.jsonl", [line])
    reading = read_measurements(Dataset(tmp_path))
    assert len(reading.measurements) == 6
    assert len(format_page(build_report(reading), reading.evidence, subject="x")) > 1000


def test_the_page_opens_without_a_word_on_the_console(opened: chromium.Browser, page: Path) -> None:
    assert opened.list_trouble() == []
    assert opened.list_requests() == [page.as_uri()]
    assert opened.evaluate("document.querySelectorAll('table').length") > 5


def test_a_script_in_a_name_does_not_run(opened: chromium.Browser) -> None:
    opened.click(".times .ev")
    opened.evaluate(
        "for (const mark of document.querySelectorAll('.mk[data-m]')) mark.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))"
    )
    assert opened.evaluate("document.title") == f"Kernel benchmarks: {HOSTILE}"
    assert opened.evaluate("document.querySelectorAll('img').length") == 0
    shown = opened.evaluate("document.body.textContent.includes(\"document.title='owned'\")")
    assert shown, "the name is there, as text"
    assert opened.list_trouble() == []


def test_a_table_is_sorted_by_the_keyboard(opened: chromium.Browser) -> None:
    column = (
        "[...document.querySelectorAll('[aria-label^=\"Definitions\"] tbody tr')].map((row) => row.cells[5].dataset.v)"
    )
    head = "document.querySelectorAll('table[aria-label^=\"Definitions\"] thead th')[5]"
    opened.evaluate(f"{head}.querySelector('button').focus()")
    column = column.replace('[aria-label^="Definitions"] tbody', 'table[aria-label^="Definitions"] tbody')
    for order, is_reversed in (("descending", True), ("ascending", False)):
        opened.press("Enter", 13)
        values = [float(value) for value in opened.evaluate(column)[:6]]
        assert values == sorted(values, reverse=is_reversed)
        assert opened.evaluate(f"{head}.getAttribute('aria-sort')") == order
    assert opened.evaluate("document.activeElement.tagName") == "BUTTON"


def test_what_is_not_there_is_sorted_last_either_way(opened: chromium.Browser) -> None:
    table = "document.querySelector('table[aria-label=\"Comparison by workload\"]')"
    for _ in range(2):
        opened.evaluate(
            f"[...{table}.tHead.rows[0].cells].find((cell) => cell.textContent.startsWith('first /')).click()"
        )
        values = opened.evaluate(
            f"[...{table}.tBodies[0].rows].map((row) => row.cells[row.cells.length - 3].dataset.v)"
        )
        gaps = [place for place, value in enumerate(values) if value == ""]
        assert gaps
        assert gaps[-1] == len(values) - 1
        assert len(gaps) == len(values) - gaps[0]


def test_a_figure_opens_its_evidence_and_escape_closes_it(opened: chromium.Browser) -> None:
    opened.evaluate("document.querySelector('.times .ev').focus()")
    opened.press("Enter", 13)
    text = opened.evaluate("document.querySelector('dialog[open]').innerText")
    for word in (
        "seed",
        "1152921504606859321",
        "cupti, cold L2",
        "1980 MHz",
        "GPU-5a0c",
        "landlock",
        "Solution's hash",
    ):
        assert word in text
    opened.list_trouble()
    assert opened.evaluate("document.querySelectorAll('dialog .sample').length") == 120
    opened.press("Escape", 27)
    assert opened.evaluate("document.querySelector('dialog[open]')") is None
    assert opened.evaluate("document.activeElement.className") == "ev", "the focus is back where it was"


def test_a_failure_opens_with_what_went_wrong(opened: chromium.Browser) -> None:
    opened.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    opened.evaluate("[...document.querySelectorAll('.ev.bad')].find((cell) => cell.textContent === 'uneven').click()")
    text = opened.evaluate("document.querySelector('dialog[open]').innerText")
    assert "call 7 of each 20 takes 15.2 times the median" in text
    assert "uneven" in text


def test_definitions_are_filtered_and_a_link_opens_one(opened: chromium.Browser) -> None:
    opened.evaluate(
        "(() => { const box = document.querySelector('.filter'); box.value = 'GEMM'; box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    seen = "[...document.querySelectorAll('#device-0 details')].filter((fold) => fold.offsetParent).length"
    assert opened.evaluate(seen) == 1
    opened.evaluate(
        "document.querySelector('#device-0 table[aria-label^=\"Definitions\"] tbody tr:not(.hidden) a').click()"
    )
    opened.list_trouble()
    assert opened.evaluate("[...document.querySelectorAll('#device-0 details')].find((fold) => fold.offsetParent).open")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_every_width_in_light_and_dark(opened: chromium.Browser, width: int, *, dark: bool) -> None:
    opened.resize(width, 900, dark=dark)
    assert opened.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
    picture = opened.picture()
    assert struct.unpack(">II", picture[16:24]) == (width, 900)
    assert len(picture) > 10_000, "there is something on it"
    colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in re.findall(r"\d+", colour)[:3]) < 120) is dark


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_of_text_can_be_read(opened: chromium.Browser, *, dark: bool) -> None:
    opened.resize(1200, 900, dark=dark)
    names = ["--ink", "--dim", "--link", "--good", "--bad", "--roof"]
    marks = [f"--c{number}" for number in range(9)] + ["--cb"]
    script = "(name) => { const probe = document.createElement('i'); probe.style.color = `var(${name})`; document.body.append(probe); const said = getComputedStyle(probe).color; probe.remove(); return said; }"
    colours = opened.evaluate(f"{json.dumps(['--card', '--page', *names, *marks])}.map({script})")
    light = [_luminance(colour) for colour in colours]
    for behind in light[:2]:
        for name, value in zip(names, light[2:], strict=False):
            assert _contrast(behind, value) >= 4.5, name
        for name, value in zip(marks, light[2 + len(names) :], strict=True):
            assert _contrast(behind, value) >= 3.0, name


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
