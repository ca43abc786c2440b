from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import submittable
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases.context import Context, Workspace

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("closed_pipeline")


def test_what_a_workspace_holds_survives_being_packed(benchmark: Any, tmp_path: Path) -> None:
    root = tmp_path / "one"
    context = Context(workspace=Workspace(root=root), offline=True)
    context.dataset.write_definition(get_kernel_type("rmsnorm").build({"hidden_size": 64}))
    submittable.make_submittable(context, origin="dummy")
    (root / "sglang" / ".git").mkdir(parents=True)
    (root / "sglang" / ".git" / "config").write_text("x", encoding="utf-8")
    before = benchmark.take_stock(root)
    assert before["dataset"]["Workloads"] == {"dummy": 2}
    assert before["dataset"]["Traces"] == before["dataset"]["Traces passed"] > 0
    assert before["dataset"]["verified"] == 1
    benchmark.pack(root, tmp_path / "out" / "workspace.tar.xz")
    benchmark.unpack(tmp_path / "out" / "workspace.tar.xz", tmp_path / "two")
    assert benchmark.take_stock(tmp_path / "two") == before
    assert not (tmp_path / "two" / "sglang").exists()


def test_the_text_says_whether_what_was_carried_is_what_arrived(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty: dict[str, Any] = {"models": {}, "dataset": {}}
    held = {"kernels": {"defined": 2}, "steps": {"test": {"passed": 2}}, "seconds": {"1": 2.0}, "step seconds": {}}
    full = {"models": {"tiny": held}, "dataset": {"Definitions": 2, "Workloads": {}}}
    run = {"command": "fib onboard tiny", "status": 0, "seconds": 3.0, "said": ["test 2 open"], "writes": {"GitHub": 0}}
    hops = ((empty, full), (full, full), (empty, full))
    folder = tmp_path / benchmark.HOPS
    folder.mkdir()
    for number, (before, after) in enumerate(hops, start=1):
        record = {
            "hop": f"hop {number}",
            "machine": "no GPU",
            "seconds": 3.0,
            "runs": [run],
            "before": before,
            "after": after,
        }
        (folder / f"{number}-hop.json").write_text(json.dumps(record), encoding="utf-8")
    benchmark.write_results(tmp_path, tmp_path / "results.txt")
    text = (tmp_path / "results.txt").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == text.strip()
    assert [line for line in text.splitlines() if line.startswith("manifests and dataset before")] == [
        "manifests and dataset before: as they were after the hop before",
        "manifests and dataset before: changed on the way",
    ]
    assert "fib onboard tiny: exit 0, 3.0 s, writes: 0 GitHub" in text
    assert "manifest after, tiny: kernels 2 defined; test: 2 passed" in text
    assert "dataset after: 2 Definitions, Workloads (none)" in text
