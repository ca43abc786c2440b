from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench_dataset import CPU, PASSED, Case, write_cases
from fib_tools.capture.timeline import Span, Timeline
from fib_tools.dataset.store import Dataset
from fib_tools.model.evidence import Gpu
from fib_tools.model.trace import EvaluationStatus
from fib_tools.phases.trace_best import annotate_best, find_best
from measured_solutions import GEMM, make_solution, measure


def look_up(root: Path, m: int = 32, *, definition: str = GEMM, gpu: str | None = None) -> dict[str, Any]:
    """Annotate one call, and take what was added to it."""
    details = {"definition": definition, "axis M": m, "op_type": "gemm"}
    spans = tuple(
        Span(name=name, kind="operator", start_ns=0, end_ns=0, details=own)
        for name, own in (("call", details), ("other", {"op_type": "step"}))
    )
    best = find_best(Dataset(root), {definition}, gpu=gpu)
    call, other = annotate_best(Timeline(name="t", spans=spans), best).spans
    assert other.details == {"op_type": "step"}
    return {name: value for name, value in call.details.items() if name not in details}


def test_a_call_names_the_fastest_that_passed_on_the_workload_nearest_to_it(tmp_path: Path) -> None:
    for author, m, percent in (("ana", 64, 84.0), ("gpt", 64, 61.0), ("gpt", 1, 99.0), ("baseline", 64, 70.0)):
        measure(tmp_path, author, m, percent)
    found = look_up(tmp_path)
    milliseconds, percent = found.pop("best_milliseconds"), found.pop("best_percent_of_limit")
    assert found == {
        "best_solution": "ana/fast",
        "best_measured_on": "NVIDIA H200",
        "best_measured_with": "M 64",
        "best_timer": "cupti",
    }
    # of 1 MiB at 4.1e12 bytes/s, and 1.6 us on top
    assert milliseconds == pytest.approx(0.000256 / 0.84 + 0.0016, rel=0.01)
    assert percent == pytest.approx(100 * 0.000256 / milliseconds, rel=0.01)
    assert look_up(tmp_path, m=2)["best_solution"] == "gpt/fast", "lengths are compared by ratio: 2 is nearer to 1"


def test_a_baseline_is_the_best_where_it_is(tmp_path: Path) -> None:
    measure(tmp_path, "baseline", 64, 90.0)
    measure(tmp_path, "ana", 64, 84.0)
    assert look_up(tmp_path)["best_solution"] == "baseline/fast"


def test_of_several_gpus_one_can_be_chosen(tmp_path: Path) -> None:
    measure(tmp_path, "ana", 64, 84.0)
    measure(tmp_path, "gpt", 64, 40.0, gpu=Gpu(name="NVIDIA B200", uuid="GPU-1", capability=100))
    measure(tmp_path, "cpu", 64, 1.0, gpu=CPU)
    assert look_up(tmp_path)["best_measured_on"] == "NVIDIA H200"
    assert look_up(tmp_path, gpu="NVIDIA B200")["best_solution"] == "gpt/fast"
    assert look_up(tmp_path, gpu="NVIDIA A100") == {}


def test_what_failed_or_was_rejected_is_not_the_best(tmp_path: Path) -> None:
    measure(tmp_path, "ana", 64, 84.0, status=EvaluationStatus.RUNTIME_ERROR, rule="uneven", detail="no")
    assert look_up(tmp_path) == {}
    measure(tmp_path, "gpt", 4096, 20.0)
    assert look_up(tmp_path)["best_solution"] == "gpt/fast"


def test_a_solution_that_changed_since_it_was_measured_or_is_gone_does_not_count(tmp_path: Path) -> None:
    measure(tmp_path, "ana", 64, 84.0)
    assert look_up(tmp_path)["best_solution"] == "ana/fast"
    (path,) = tmp_path.glob("solutions/ana/*/*/fast.json")
    path.write_text(path.read_text(encoding="utf-8").replace("a @ b.T", "b @ a.T"), encoding="utf-8")
    assert look_up(tmp_path) == {}
    path.unlink()
    assert look_up(tmp_path) == {}


def test_another_tools_traces_do_not_count(tmp_path: Path) -> None:
    case = Case(definition=GEMM, op_type="gemm", author="ana", solution="fast", axes={"M": 32}, status=PASSED)
    write_cases(tmp_path, [case], is_foreign=True)
    Dataset(tmp_path).write_solution("gemm", make_solution("ana", "fast"))
    assert look_up(tmp_path) == {}


def test_where_nothing_is_known_nothing_is_said(tmp_path: Path) -> None:
    assert look_up(tmp_path / "nowhere") == {}
    measure(tmp_path, "ana", 64, 84.0)
    assert look_up(tmp_path, definition="gemm_n64_k128") == {}


def test_a_trace_that_its_evidence_contradicts_is_a_problem(tmp_path: Path) -> None:
    measure(tmp_path, "ana", 64, 84.0)
    (path,) = tmp_path.glob("traces/ana/gemm/*.jsonl")
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace('"latency_ms":0', '"latency_ms":9').replace('"latency_ms": 0', '"latency_ms": 9'), "utf-8"
    )
    best = find_best(Dataset(tmp_path), {GEMM})
    assert "its evidence says" in best.problems[0]
