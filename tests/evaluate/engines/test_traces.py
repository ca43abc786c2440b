from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest

from example_dataset import FILES, write
from fib_tools.checks.dataset import check_dataset
from fib_tools.checks.view import open_view
from fib_tools.dataset.store import Dataset
from fib_tools.errors import FormatError
from fib_tools.evaluate.engines.traces import make_trace, merge_lines, write_results
from fib_tools.model.base import read_lenient
from fib_tools.model.canonical import format_line
from fib_tools.model.evidence import (
    EVALUATOR_VERSION,
    L2,
    Evidence,
    Gpu,
    OutputErrors,
    Roofline,
    Series,
    Subject,
    Timer,
)
from fib_tools.model.trace import EvaluationStatus, Trace
from fib_tools.model.workload import Workload

T = "traces/baseline/copy/copy_n4.jsonl"
WORKLOADS = {
    "one": Workload.model_validate(FILES["workloads/copy/copy_n4.jsonl"][0]["workload"]),
    "two": Workload(axes={"rows": 3, "len_indptr": 4}, inputs={}, uuid="two"),
}
SERIES = Series(timer=Timer.CUPTI, l2=L2.COLD, milliseconds=0.5, low=0.49, high=0.51, samples=[0.5, 0.5])
ERRORS = OutputErrors(max_absolute=0.25, max_relative=0.5, rtol=0.01, atol=0.01)


def evidence(workload: str = "one", solution: str = "wrapper", *, device: str = "H200", **more: Any) -> Evidence:
    subject = Subject(
        definition="copy_n4",
        definition_hash="d",
        workload=workload,
        workload_hash=f"w{workload}",
        solution=solution,
        solution_hash=f"s{solution}",
        author="baseline",
        device=device,
    )
    passed = {
        "status": EvaluationStatus.PASSED,
        "series": [SERIES],
        "reference_ms": 2.0,
        "errors": {"y": ERRORS},
        "timestamp": "2026-11-22T00:00:00+00:00",
        "seed": 7,
        "calls": 60,
    }
    about = {
        "subject": subject,
        "op_type": "copy",
        "gpu": Gpu(name=device, uuid="GPU-1", driver="580"),
        "libs": {"torch": "2.13"},
    }
    return Evidence.model_validate({**passed, **about, **more})


def find_workload(_definition: str, uuid: str) -> Workload:
    return WORKLOADS[uuid]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    for path, content in FILES.items():
        if not path.startswith("traces/"):
            write(tmp_path, path, content)
    return Dataset(tmp_path)


def test_what_passed_becomes_a_trace_with_errors_times_and_the_address_of_its_evidence() -> None:
    seen = evidence(roofline=Roofline(bytes=1, flops=1, bandwidth=1.0, limit_ms=0.25, percent=50.0))
    trace = make_trace(seen, WORKLOADS["one"])
    assert trace.evaluation is not None
    assert trace.evaluation.model_dump(mode="json") == {
        "status": "PASSED",
        "environment": {
            "hardware": "H200",
            "libs": {
                "torch": "2.13",
                "timer": "cupti",
                "gpu_uuid": "GPU-1",
                "driver": "580",
                "evaluator": f"fib-tools {EVALUATOR_VERSION}",
                "evidence": seen.key,
            },
        },
        "timestamp": "2026-11-22T00:00:00+00:00",
        "log": "",
        "correctness": {
            "max_relative_error": 0.5,
            "max_absolute_error": 0.25,
            "extra": {
                "evidence": seen.key,
                "seed": 7,
                "calls": 60,
                "interval_ms": [0.49, 0.51],
                "percent_of_limit": 50.0,
            },
        },
        "performance": {"latency_ms": 0.5, "reference_latency_ms": 2.0, "speedup_factor": 4.0},
    }


def test_a_broken_rule_is_named_in_the_log_and_a_rejection_begins_with_it() -> None:
    broke = {"rule": "hidden-work", "detail": "3 kernels", "series": []}
    rejected = make_trace(evidence(status="RUNTIME_ERROR", **broke), WORKLOADS["one"]).evaluation
    wrong = make_trace(evidence(status="INCORRECT_NUMERICAL", **broke), WORKLOADS["one"]).evaluation
    assert rejected is not None
    assert wrong is not None
    assert (rejected.log, rejected.correctness) == ("REJECTED by hidden-work: 3 kernels", None)
    assert wrong.log == "hidden-work: 3 kernels"
    said = {**broke, "detail": rejected.log}
    again = make_trace(evidence(status="RUNTIME_ERROR", **said), WORKLOADS["one"]).evaluation
    assert again is not None
    assert again.log == rejected.log
    assert wrong.correctness is not None
    assert wrong.correctness.extra is not None
    assert wrong.correctness.extra["rule"] == "hidden-work"


def test_not_a_number_is_the_worst_error() -> None:
    bad = ERRORS.model_copy(update={"max_absolute": math.nan})
    worst = ERRORS.model_copy(update={"max_absolute": math.inf, "max_relative": math.inf})
    trace = make_trace(evidence(errors={"x": worst, "y": bad, "z": ERRORS}), WORKLOADS["one"])
    assert trace.evaluation is not None
    assert trace.evaluation.correctness is not None
    assert math.isnan(trace.evaluation.correctness.max_absolute_error)
    assert trace.evaluation.correctness.max_relative_error == math.inf


@pytest.mark.parametrize("lack", [{"series": []}, {"timestamp": ""}])
def test_evidence_that_lacks_what_its_status_demands_makes_no_trace(lack: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="makes no Trace"):
        make_trace(evidence(**lack), WORKLOADS["one"])


@pytest.mark.parametrize("status", list(EvaluationStatus))
def test_the_peer_reads_our_traces_to_the_same_values(status: EvaluationStatus) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flashinfer_bench import data
    trace = make_trace(evidence(status=status, rule="wrong-values", errors={"y": ERRORS}), WORKLOADS["one"])
    theirs = data.Trace.model_validate_json(format_line(trace))
    assert read_lenient(Trace, json.loads(theirs.model_dump_json(exclude_unset=True)), where="peer") == trace


def test_results_are_written_with_their_evidence_and_the_dataset_stays_valid(dataset: Dataset) -> None:
    seen = evidence()
    merged = write_results(dataset, [seen], find_workload)
    assert (merged.files, merged.results) == ((T,), 1)
    assert dataset.find_evidence(seen.key) == seen
    assert [json.loads(line)["solution"] for line in dataset.read_lines(T)] == ["wrapper"]
    write(dataset.root, "blob/workloads/copy/copy_n4/one.safetensors", b"")
    checks = {finding.check for finding in check_dataset(open_view(dataset)) if "evidence" in finding.where}
    assert checks == set()
    assert not {
        f.check for f in check_dataset(open_view(dataset)) if f.check.startswith(("layout", "trace", "baseline"))
    }


def test_the_same_results_again_change_nothing(dataset: Dataset) -> None:
    write_results(dataset, [evidence()], find_workload)
    before = (dataset.root / T).stat().st_mtime_ns
    assert write_results(dataset, [evidence()], find_workload).files == ()
    assert (dataset.root / T).stat().st_mtime_ns == before


def test_results_are_the_same_bytes_in_whatever_order_they_come(dataset: Dataset) -> None:
    results = [evidence(w, s, device=d) for w in ("one", "two") for s in ("a", "b") for d in ("B200", "H200")]
    write_results(dataset, reversed(results), find_workload)
    backwards = dataset.read_lines(T)
    (dataset.root / T).unlink()
    for result in results:
        write_results(dataset, [result], find_workload)
    assert dataset.read_lines(T) == backwards
    assert len(backwards) == 8


def lines_of(*results: Evidence) -> list[str]:
    return [format_line(make_trace(each, WORKLOADS[each.subject.workload])) for each in results]


def test_a_newer_result_replaces_the_older_of_the_same_workload_solution_and_device() -> None:
    old, new = evidence(timestamp="2026-11-21T23:00:00Z"), evidence(timestamp="2026-11-22T00:30:00+01:00")
    other = evidence(device="B200", timestamp="2026-11-20T00:00:00")
    first, second = (make_trace(each, WORKLOADS["one"]) for each in (old, new))
    assert merge_lines(lines_of(old, other), [second], order=["one"]) == lines_of(other, new)
    assert merge_lines(lines_of(new), [first], order=["one"]) == lines_of(new)


def test_other_lines_stay_as_they_are_to_the_byte() -> None:
    spaced = format_line(make_trace(evidence("two", timestamp="yesterday"), WORKLOADS["two"])).replace(", ", " ,  ")
    bare = json.dumps({"definition": "copy_n4", "workload": json.loads(format_line(WORKLOADS["two"]))})
    strange = '{"no": "trace"}'
    merged = merge_lines([strange, bare, spaced], [make_trace(evidence(), WORKLOADS["one"])], order=["two", "one"])
    assert merged == [spaced, *lines_of(evidence()), strange, bare]
