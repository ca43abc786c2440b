from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.sources._call_sites import find_call_sites
from fib_tools.sources._exports import Definition, ExportGraph
from fib_tools.sources.flashinfer import get_package, load_traced_apis
from fib_tools.sources.packages import find_package

RUN = "flashinfer.decode.BatchDecodeWrapper.run"
PLAN = "flashinfer.decode.BatchDecodeWrapper.plan"
NORM = "flashinfer.norm.rmsnorm"


def search(folder: Path, flashinfer_root: Path, text: str) -> dict[str, list[int]]:
    (folder / "sglang").mkdir()
    (folder / "sglang" / "__init__.py").write_text("", encoding="utf-8")
    (folder / "sglang" / "file.py").write_text(text, encoding="utf-8")
    package = find_package("sglang", folder)
    assert package is not None
    graph = ExportGraph(get_package(flashinfer_root))
    sites = find_call_sites(package, graph, load_traced_apis(flashinfer_root)).direct
    return {api: sorted(line for _, line in places) for api, places in sites.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import flashinfer\nflashinfer.rmsnorm(1)\nflashinfer.norm.rmsnorm(2)\n", {NORM: [2, 3]}),
        ("import flashinfer as fi\nfi.norm_alias(1)\n", {NORM: [2]}),
        ("from flashinfer import norm\nnorm.rmsnorm(1)\n", {NORM: [2]}),
        ("from flashinfer.norm import rmsnorm as f\nf = f if f else None\nf(1)\n", {NORM: [3]}),
        (
            "from functools import partial\nfrom flashinfer import rmsnorm\ng = partial(rmsnorm, 1)\ng(2)\n",
            {NORM: [3, 4]},
        ),
        ("import flashinfer\ng = getattr(flashinfer.norm, 'rmsnorm')\ng(2)\n", {NORM: [3]}),
        ("from flashinfer import rmsnorm\ntable = {1: rmsnorm}\ntable[1](2)\n", {NORM: [2, 3]}),
        ("from flashinfer import rmsnorm\ndef pick():\n    return rmsnorm\npick()(1)\n", {NORM: [3, 4]}),
        ("from flashinfer import rmsnorm\nclass A:\n    f = staticmethod(rmsnorm)\n", {NORM: [3]}),
        ("from flashinfer import rmsnorm\nif rmsnorm is None:\n    pass\n", {}),
        ("from flashinfer import rmsnorm\nself.f = rmsnorm\nself.f(1)\n", {NORM: [3]}),
        ("import flashinfer\nw = flashinfer.BatchDecodeWrapper()\nw.run(1)\nw.forward(2)\n", {RUN: [3, 4]}),
        ("import flashinfer\nw = flashinfer.decode.GraphDecodeWrapper()\nw.plan(1)\n", {PLAN: [3]}),
        ("from flashinfer import *\nrun(1)\n", {}),
        ("from flashinfer import BatchDecodeWrapper as W\ndef f(w: W | None):\n    w.run(1)\n", {RUN: [3]}),
        ("from flashinfer import BatchDecodeWrapper as W\ndef f(w):\n    w.run(1)\nf(W())\n", {RUN: [3]}),
        ("from flashinfer import BatchDecodeWrapper as W\ndef f(*, w):\n    w.run(1)\nf(w=W())\n", {RUN: [3]}),
        ("from flashinfer import BatchDecodeWrapper as W\ndef make() -> W: ...\nmake().run(1)\n", {RUN: [3]}),
        (
            "from flashinfer import BatchDecodeWrapper as W\ndef make():\n  if 1:\n    return [W()]\nmake()[0].run(1)\n",
            {RUN: [5]},
        ),
        ("from flashinfer import BatchDecodeWrapper as W\na, b = 1, W()\na.run(1)\nb.run(2)\n", {RUN: [4]}),
        ("from flashinfer import BatchDecodeWrapper as W\nx = {k: W() for k in y}\nx.get(1).run(1)\n", {RUN: [3]}),
        ("from flashinfer import BatchDecodeWrapper as W\nwith a: pass\nif (w := W()):\n    w.run(1)\n", {RUN: [4]}),
        ("from flashinfer import BatchDecodeWrapper as W\n[w.run(1) for w in [W()] + []]\n", {RUN: [2]}),
        (
            "from flashinfer import BatchDecodeWrapper as W\nlayer.w = W()\ndef f(info):\n    info.x.run(1)\n    info.go(2)\n",
            {RUN: [4]},
        ),
        ("from flashinfer.decode import Unrelated\nUnrelated().run(1)\n", {}),
        ("import flashinfer.nothing\nflashinfer.nothing.rmsnorm(1)\n", {}),
    ],
)
def test_a_use_is_found_however_it_is_written(
    tmp_path: Path, flashinfer_root: Path, text: str, expected: dict[str, list[int]]
) -> None:
    assert search(tmp_path, flashinfer_root, text) == expected


def test_an_export_graph_follows_names_to_their_definitions(flashinfer_root: Path) -> None:
    graph = ExportGraph(get_package(flashinfer_root))
    assert graph.resolve("flashinfer.norm_alias") == Definition("flashinfer.norm", "rmsnorm")
    assert graph.resolve("flashinfer.GraphDecodeWrapper") == Definition("flashinfer.decode", "GraphDecodeWrapper")
    assert graph.resolve("flashinfer.moe") == Definition("flashinfer.moe", "")
    assert graph.resolve("flashinfer.xqa") == Definition("flashinfer.xqa", "xqa")
    assert graph.resolve("flashinfer.xqa.xqa") == Definition("flashinfer.xqa", "xqa")
    assert graph.resolve("flashinfer.nothing") is None
    assert graph.resolve("torch.nn") is None


def test_a_circle_of_imports_and_bases_ends(flashinfer_root: Path) -> None:
    folder = flashinfer_root / "flashinfer"
    (folder / "one.py").write_text("from .two import x, C\nclass A(B): ...\nclass B(A): ...\n", encoding="utf-8")
    (folder / "two.py").write_text("from .one import x\nfrom .one import *\nfrom .two import *\n", encoding="utf-8")
    graph = ExportGraph(get_package(flashinfer_root))
    assert graph.resolve("flashinfer.one.x") is None
    assert graph.resolve("flashinfer.two.missing") is None
    assert graph.find_method(Definition("flashinfer.one", "A"), "run") is None


def test_an_alias_in_a_class_stands_for_its_method(flashinfer_root: Path) -> None:
    text = "class W:\n    def run(self): ...\n    lse = partialmethod(run, lse=True)\n    odd = 3\n    loop = loop\n"
    (flashinfer_root / "flashinfer" / "aliases.py").write_text(text, encoding="utf-8")
    graph = ExportGraph(get_package(flashinfer_root))
    wrapper = Definition("flashinfer.aliases", "W")
    assert graph.find_method(wrapper, "lse") == "flashinfer.aliases.W.run"
    assert graph.find_method(wrapper, "odd") is None
    assert graph.find_method(wrapper, "loop") is None
    assert graph.find_method(Definition("flashinfer.norm", "rmsnorm"), "run") is None
