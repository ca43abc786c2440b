"""The pages of a site, read as text: all that is linked is there, and nothing that a dataset says becomes markup."""

from __future__ import annotations

import json
import posixpath
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import example_dataset
from bench_dataset import H200, HOSTILE
from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.report.report_reading import read_measurements
from fib_tools.model.manifest import Manifest
from fib_tools.publish.view import leaderboard_page
from fib_tools.publish.view.frame import POLICY
from fib_tools.publish.view.paths import definition_path, solution_path
from fib_tools.publish.view.site import Site
from view_world import GEMM, NORM, ODD, make_manifest, write_world


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def make_site(workspace: Path, **manifests: Manifest) -> Site:
    return Site(
        Dataset(workspace / "flashinfer-trace"),
        manifests=lambda: ({name.replace("_", "-"): each for name, each in manifests.items()}, ()),
        timelines=workspace / "traces",
        fresh_seconds=0.0,
    )


@pytest.fixture(scope="module")
def pages(workspace: Path) -> dict[str, bytes]:
    site = make_site(workspace, kimi_k2=make_manifest())
    found = {path: site.find(path) for path in site.list_paths()}
    assert None not in found.values(), "every path that is listed leads somewhere"
    return {path: content.data for path, content in found.items() if content is not None}


def list_html(pages: dict[str, bytes]) -> dict[str, str]:
    return {path: data.decode() for path, data in pages.items() if path.endswith(".html")}


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_every_page_of_the_plan_is_there(pages: dict[str, bytes]) -> None:
    for path in (
        "index.html",
        "models.html",
        "definitions.html",
        "leaderboard.html",
        "timelines.html",
        "models/kimi-k2.html",
        f"definitions/rmsnorm/{NORM}.html",
        f"data/rmsnorm/{NORM}.json",
        f"solutions/ana/rmsnorm/{NORM}/cute_dsl_rmsnorm.html",
        "timelines/kimi-k2_layer0.pftrace",
        "assets/page.js",
    ):
        assert path in pages


def test_every_link_leads_to_a_page_and_every_jump_to_a_place(pages: dict[str, bytes]) -> None:
    texts = list_html(pages)
    places = {path: set(re.findall(r' id="([^"]+)"', text)) for path, text in texts.items()}
    count = 0
    for path, text in texts.items():
        for _, attrs in Reader(text).tags:
            for name in ("href", "src", "data-source", "data-trace"):
                said = attrs.get(name) or ""
                url = urlsplit(said)
                if not said or re.fullmatch(r"#s\d", said):
                    continue  # no link, or the outline of a mark
                assert not url.scheme
                assert not url.netloc
                target = posixpath.normpath(posixpath.join(posixpath.dirname(path), url.path)) if url.path else path
                assert target in pages, f"{path} leads to {url.path}"
                if url.fragment and target in places:
                    assert url.fragment in places[target], f"{path} jumps to {attrs[name]}"
                count += 1
    assert count > 100


def test_a_page_takes_nothing_from_elsewhere_and_has_no_markup_of_strangers(pages: dict[str, bytes]) -> None:
    for path, text in list_html(pages).items():
        reader = Reader(text)
        names = [tag for tag, _ in reader.tags]
        assert not {"img", "iframe", "object", "embed", "base", "form", "style"} & set(names), path
        scripts = [attrs for tag, attrs in reader.tags if tag == "script"]
        assert [attrs["src"] for attrs in scripts if attrs.get("src")] == [attrs.get("src") for attrs in scripts]
        assert not [name for _, attrs in reader.tags for name in attrs if name.startswith("on")]
        (policy,) = (attrs["content"] for _, attrs in reader.tags if attrs.get("http-equiv"))
        assert policy == POLICY
        styles = [attrs["style"] or "" for _, attrs in reader.tags if "style" in attrs]
        assert all(re.fullmatch(r"[a-z:.%0-9;-]+", style) for style in styles)


def test_a_page_has_one_title_and_headings_that_go_down_step_by_step(pages: dict[str, bytes]) -> None:
    for path, text in list_html(pages).items():
        levels = [int(tag[1]) for tag, _ in Reader(text).tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1, path
        assert levels.count(1) == 1, path
        assert all(after <= before + 1 for before, after in pairwise(levels)), path


def test_names_that_no_path_can_have_get_one_and_are_shown_as_text(pages: dict[str, bytes]) -> None:
    odd = definition_path("copy", ODD)
    assert re.fullmatch(r"definitions/copy/~[0-9a-f]{16}\.html", odd)
    assert "&lt;img src=x onerror=alert(1)&gt;" in pages[odd].decode()
    hostile = pages["definitions/copy/hostile.html"].decode()
    assert hostile.count("&lt;script&gt;") > 5
    assert HOSTILE not in hostile
    data = json.loads(pages["data/copy/hostile.json"])
    assert {row["solution"] for row in data["rows"]} == {HOSTILE}, "data is data; the script writes it as text"


@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "assets/../site.py",
        "assets/site.py",
        "definitions/../../index.html",
        "definitions/copy/broken.html",
        "timelines/../onboard_kimi-k2_2026-11-22.json",
        "timelines/link.pftrace",
        "solutions/ana/copy/hostile/other.html",
        "models/llama-3.1-8b.html",
        "data/copy/../copy/hostile.json",
        "flashinfer-trace/definitions/copy/hostile.json",
        "\0",
        "nothing",
    ],
)
def test_what_is_no_page_is_not_there(workspace: Path, path: str) -> None:
    link = workspace / "traces" / "link.pftrace"
    if not link.is_symlink():
        link.symlink_to("/etc/hostname")
    assert make_site(workspace).find(path) is None


def test_a_definition_that_cannot_be_read_is_listed_with_its_reason(pages: dict[str, bytes]) -> None:
    assert "definitions/copy/broken.json" in pages["definitions.html"].decode()
    assert "These cannot be read" in pages["index.html"].decode()


def test_what_is_measured_later_is_seen_at_the_next_look(tmp_path: Path) -> None:
    root = write_world(tmp_path)
    site = make_site(root)
    path = "definitions/copy/hostile.html"

    def read(path: str) -> str:
        content = site.find(path)
        assert content is not None
        return content.data.decode()

    before = {name: read(name) for name in (path, "definitions.html", "leaderboard.html")}
    for name, text in before.items():
        assert read(name) == text, "the same again"
    traces = root / "flashinfer-trace/traces/ana/copy/hostile.jsonl"
    line = json.loads(traces.read_text(encoding="utf-8"))
    again = {**line, "solution": "another"}
    example_dataset.write(root / "flashinfer-trace", "traces/ana/copy/hostile.jsonl", [line, again])
    for name, text in before.items():
        assert read(name) != text
    assert "ana/<wbr>another" in read(path)


def test_data_of_another_moment_is_told_from_that_of_the_page(tmp_path: Path) -> None:
    root = write_world(tmp_path)
    site = make_site(root)
    page, data = site.find(f"definitions/gemm/{GEMM}.html"), site.find(f"data/gemm/{GEMM}.json")
    assert page is not None
    assert data is not None
    stamp = json.loads(data.data)["stamp"]
    assert f'data-stamp="{stamp}"' in page.data.decode()
    (root / f"flashinfer-trace/traces/ana/gemm/{GEMM}.jsonl").unlink()
    later = site.find(f"data/gemm/{GEMM}.json")
    assert later is not None
    assert json.loads(later.data)["stamp"] != stamp


def test_an_empty_dataset_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "flashinfer-trace/definitions").mkdir(parents=True)
    site = make_site(tmp_path)
    said = {"index.html": "Definitions", "definitions.html": "fib onboard", "models.html": "fib onboard"}
    said |= {"leaderboard.html": "fib bench", "timelines.html": "fib trace block"}
    for path, words in said.items():
        content = site.find(path)
        assert content is not None
        assert words in content.data.decode()


def test_solutions_of_one_name_have_pages_of_their_own(workspace: Path) -> None:
    site = make_site(workspace)
    paths = [path for path in site.list_paths() if path.startswith("solutions/")]
    assert len(set(paths)) == len(paths)
    entries = site._look().contents.entries
    assert {solution_path(at) for entry in entries for at in entry.solutions} == set(paths)


def test_a_kernel_of_some_layers_says_of_how_many(workspace: Path) -> None:
    manifest = make_manifest()
    norm = manifest.kernels[0]
    first = norm.model_copy(
        update={"name": "first", "module": "model.layers.*.mlp", "layers": 1, "stages": ("decode",)}
    )
    site = make_site(workspace, kimi_k2=manifest.model_copy(update={"kernels": (norm, first)}))
    page = site.find("models/kimi-k2.html")
    assert page is not None
    rows = re.findall(r'class="kname">(.*?)</span><span class="served">(.*?)</span></span>', page.data.decode())
    said = {re.sub("<[^>]*>", "", name): re.findall(r'"chip">([^<]*)', f"{served}") for name, served in rows}
    assert said["first"] == ["1 layer", "tp 8", "decode"]
    assert said[NORM] == ["tp 8"]


def test_what_was_measured_on_a_cpu_is_no_figure_of_a_gpu(pages: dict[str, bytes]) -> None:
    for path in ("leaderboard.html", f"definitions/rmsnorm/{NORM}.html"):
        text = pages[path].decode()
        assert text.count("these are no figures of a GPU") == 1, path
        assert "Epyc 9654" in text.partition("these are no figures")[0].rpartition("<h")[2], path


def test_of_many_measurements_some_of_every_speed_are_drawn(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, pages: dict[str, bytes]
) -> None:
    monkeypatch.setattr(leaderboard_page, "MOST_POINTS", 10)
    page = make_site(workspace).find("leaderboard.html")
    assert page is not None
    few, all_of_them = (text.decode().count("<use") for text in (page.data, pages["leaderboard.html"]))
    assert few < all_of_them
    reading = read_measurements(Dataset(workspace / "flashinfer-trace"), with_evidence=False)
    percents = [m.percent or 0.0 for m in leaderboard_page.choose_points(reading.measurements) if m.device == H200.name]
    assert len(percents) <= 10
    assert min(percents) < 10
    assert max(percents) > 50
