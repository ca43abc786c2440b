from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import example_dataset
from bench_dataset import CPU, PASSED, Case, make_evidence, make_trace, write_cases
from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.report.report_reading import OTHER_TOOL, OWN_TOOL, Reading, read_measurements
from fib_tools.model.trace import EvaluationStatus

CASE = Case(definition="copy_n4", op_type="copy", author="ana", solution="fast", axes={"rows": 4})
TRACES = "traces/ana/copy/copy_n4.jsonl"


def read(root: Path, **selection: Any) -> Reading:
    return read_measurements(Dataset(root), **selection)


def edit(root: Path, change: dict[str, Any], path: str = TRACES) -> None:
    """Change a field of the evaluation on the first line."""
    document = json.loads((root / path).read_text(encoding="utf-8").splitlines()[0])
    document["evaluation"].update(change)
    example_dataset.write(root, path, [document])


def test_a_trace_of_ours_is_told_with_its_evidence(tmp_path: Path) -> None:
    (m,) = read(write_cases(tmp_path, [CASE])).measurements
    evidence = make_evidence(CASE)
    assert (m.author, m.solution, m.device, m.measured_by, m.timer) == ("ana", "fast", "NVIDIA H200", OWN_TOOL, "cupti")
    assert (m.milliseconds, m.low, m.high) == (evidence.milliseconds, evidence.series[0].low, evidence.series[0].high)
    assert m.percent == evidence.roofline.percent  # type: ignore[union-attr]
    assert m.evidence == evidence.key
    assert m.reference_speedup == pytest.approx(7.5, rel=0.01)


def test_without_the_side_files_a_trace_still_tells_interval_and_limit(tmp_path: Path) -> None:
    write_cases(tmp_path, [CASE])
    before = read(tmp_path).measurements[0]
    next(tmp_path.glob("evidence/*/*.json")).unlink()
    reading = read(tmp_path)
    assert reading.measurements[0] == before.model_copy(update={"evidence": None})
    assert (reading.problems, dict(reading.evidence)) == ((), {})


def test_a_trace_of_another_tool_is_kept_apart(tmp_path: Path) -> None:
    (m,) = read(write_cases(tmp_path, [CASE], is_foreign=True)).measurements
    assert (m.measured_by, m.timer, m.evidence, m.low, m.percent) == (OTHER_TOOL, "", None, None, None)
    assert m.milliseconds is not None


def test_in_the_old_layout_the_solution_tells_the_author(tmp_path: Path) -> None:
    line = make_trace(replace(CASE, solution="wrapper"))
    example_dataset.write(tmp_path, "traces/copy/copy_n4.jsonl", [line, make_trace(CASE)])
    example_dataset.write(tmp_path, "solutions/baseline/copy/copy_n4/wrapper.json", example_dataset.SOLUTION)
    assert [m.author for m in read(tmp_path).measurements] == ["baseline", ""]
    example_dataset.write(tmp_path, "solutions/other/copy/copy_n4/wrapper.json", example_dataset.SOLUTION)
    assert [m.author for m in read(tmp_path).measurements] == ["", ""], "two authors have one of this name"


def test_in_the_old_layout_the_evidence_tells_the_author(tmp_path: Path) -> None:
    write_cases(tmp_path, [CASE])
    old = tmp_path / "traces" / "copy" / "copy_n4.jsonl"
    old.parent.mkdir()
    (tmp_path / TRACES).rename(old)
    assert [m.author for m in read(tmp_path).measurements] == ["ana"]


@pytest.mark.parametrize("times", [("2026-11-21T12:00:00Z", "2026-11-22T00:00:00+05:00"), ("no time", "2026-11-20")])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_the_newest_of_several_traces_counts(tmp_path: Path, times: tuple[str, str], *, is_reversed: bool) -> None:
    cases = [replace(CASE, timestamp=time, percent=percent) for time, percent in zip(times, (20, 80), strict=True)]
    reading = read(write_cases(tmp_path, cases[::-1] if is_reversed else cases, is_foreign=True))
    assert [m.timestamp for m in reading.measurements] == [times[1]]
    assert reading.superseded == 1


def test_workload_lines_and_other_definitions_are_not_read(tmp_path: Path) -> None:
    write_cases(tmp_path, [CASE, replace(CASE, definition="other", op_type="noise")])
    example_dataset.write(
        tmp_path, TRACES, [{"definition": "copy_n4", "workload": example_dataset.WORKLOAD}, make_trace(CASE)]
    )
    assert {m.definition for m in read(tmp_path).measurements} == {"copy_n4", "other"}
    assert [m.definition for m in read(tmp_path, definitions=["other"]).measurements] == ["other"]
    assert [m.definition for m in read(tmp_path, op_types=["copy"]).measurements] == ["copy_n4"]


@pytest.mark.parametrize("content", ["{\n", '{"definition": 3}\n', b"\xff\xfe"])
def test_what_is_no_trace_is_a_problem_and_the_rest_is_read(tmp_path: Path, content: str | bytes) -> None:
    write_cases(tmp_path, [replace(CASE, author="gpt")])
    example_dataset.write(tmp_path, TRACES, content)
    reading = read(tmp_path)
    assert len(reading.measurements) == 1
    assert [problem.partition(".jsonl")[0] for problem in reading.problems] == ["traces/ana/copy/copy_n4"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"performance": {"latency_ms": 0.0001, "reference_latency_ms": 1.0, "speedup_factor": 1e4}},
            "it says 0.0001 ms, its evidence says",
        ),
        (
            {"status": "TIMEOUT", "performance": None, "correctness": None},
            "it says TIMEOUT, its evidence says PASSED",
        ),
    ],
)
def test_a_trace_that_its_evidence_contradicts_is_a_problem(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_cases(tmp_path, [CASE])
    edit(tmp_path, change)
    reading = read(tmp_path)
    assert said in reading.problems[0]
    assert dict(reading.evidence) == {}


def test_evidence_at_another_address_is_a_problem(tmp_path: Path) -> None:
    write_cases(tmp_path, [CASE])
    (path,) = tmp_path.glob("evidence/*/*.json")
    text = path.read_text(encoding="utf-8").replace(make_evidence(CASE).subject.solution_hash, "0" * 64)
    path.write_text(text, encoding="utf-8")
    assert "its evidence cannot be read: it is evidence of another evaluation" in read(tmp_path).problems[0]


@pytest.mark.parametrize("key", ["../../../etc/passwd", "ab", 7, None, "g" * 64])
def test_an_address_that_is_none_leads_nowhere(tmp_path: Path, key: object) -> None:
    write_cases(tmp_path, [CASE])
    edit(
        tmp_path,
        {
            "environment": {"hardware": "NVIDIA H200", "libs": {"evaluator": "fib-tools 1"}},
            "correctness": {"extra": {"evidence": key, "interval_ms": "none", "percent_of_limit": "much", "rule": 3}},
        },
    )
    reading = read(tmp_path)
    (m,) = reading.measurements
    assert (m.evidence, m.low, m.percent, m.rule, reading.problems) == (None, None, None, None, ())


def test_a_rejection_names_its_rule_with_and_without_evidence(tmp_path: Path) -> None:
    case = replace(CASE, status=EvaluationStatus.RUNTIME_ERROR, rule="hidden-work", detail="a kernel\nran on")
    (m,) = read(write_cases(tmp_path, [case])).measurements
    assert (m.rule, m.detail, m.milliseconds, m.passed) == ("hidden-work", "a kernel\nran on", None, False)
    next(tmp_path.glob("evidence/*/*.json")).unlink()
    (bare,) = read(tmp_path).measurements
    assert (bare.rule, bare.detail, bare.measured_by) == ("hidden-work", "a kernel\nran on", OWN_TOOL)


def test_a_long_log_is_cut_in_the_middle(tmp_path: Path) -> None:
    case = replace(CASE, status=EvaluationStatus.COMPILE_ERROR, detail="head" + "x" * 5000 + "tail")
    (m,) = read(write_cases(tmp_path, [case])).measurements
    assert len(m.detail) == 600
    assert m.detail.startswith("head")
    assert m.detail.endswith("tail")


def test_the_device_is_part_of_what_a_measurement_is(tmp_path: Path) -> None:
    reading = read(write_cases(tmp_path, [CASE, replace(CASE, gpu=CPU)]))
    assert [m.device for m in reading.measurements] == ["NVIDIA H200", "Epyc 9654"]
    assert all(m.status is PASSED for m in reading.measurements)


def test_one_definition_is_read_without_a_look_at_the_others(tmp_path: Path) -> None:
    write_cases(tmp_path, [CASE, replace(CASE, definition="other"), replace(CASE, definition="copy_n[4]")])
    whole = read(tmp_path).measurements
    for name in ("copy_n4", "copy_n[4]"):
        assert read(tmp_path, definitions=[name, name]).measurements == tuple(m for m in whole if m.definition == name)
    assert read(tmp_path, definitions=["../copy/copy_n4", "*", ""]).measurements == ()


def test_without_evidence_a_trace_is_taken_at_its_word(tmp_path: Path) -> None:
    write_cases(tmp_path, [CASE])
    (checked,) = read(tmp_path).measurements
    told = read(tmp_path, with_evidence=False)
    assert told.measurements == (checked,)
    assert told.evidence == {}
    (tmp_path / "evidence").rename(tmp_path / "away")
    assert read(tmp_path, with_evidence=False).measurements == (checked,)
