from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import example_dataset
from bench_dataset import CPU, Case, sample_cases, write_cases
from fib_tools.errors import PathError, RequestError
from fib_tools.model.base import read_strict, to_document
from fib_tools.model.trace import EvaluationStatus
from fib_tools.phases.bench_report import ReportResult, report_benchmarks
from fib_tools.phases.context import Context

BASE = Case(
    definition="copy_n4", op_type="copy", author="baseline", solution="wrapper", axes={"n": 4}, bytes=1 << 30, noise=0.0
)
FAST = replace(BASE, author="ana", solution="fast", percent=80.0)


@pytest.fixture
def dataset(context: Context) -> Path:
    large = {"n": 1 << 20}
    cheat = replace(
        FAST,
        author="gpt",
        solution="cheat",
        status=EvaluationStatus.RUNTIME_ERROR,
        rule="audit",
        detail="opened /proc\nat line 3",
    )
    return write_cases(
        context.dataset.root, [BASE, FAST, replace(BASE, axes=large), replace(FAST, axes=large, percent=25.0), cheat]
    )


@pytest.mark.usefixtures("dataset")
def test_a_person_sees_standings_definitions_and_rejections(context: Context) -> None:
    summary = report_benchmarks(context).summary()
    standings, definition, rejected = summary.tables
    assert standings.title == "leaderboard: NVIDIA H200, measured by fib-tools"
    assert standings.rows == (
        ("baseline", "100%", "2/2", "1.00x", "100%", "50%", ""),
        ("ana", "100%", "2/2", "0.89x", "50%", "45%", ""),
        ("gpt", "0%", "0/1", "", "0%", "", "1"),
    )
    assert definition.columns == ("solution", "passed", "speed-up", "% of limit", "n 4", "n 1048576")
    assert definition.rows[1] == ("ana/fast", "2/2", "0.89x", "45%", "329 us", "1.049 ms")
    assert definition.rows[2] == ("gpt/cheat", "0/1", "", "", "audit", "-")
    assert rejected.rows == (("audit", "gpt/cheat", "copy_n4", "1", "opened /proc"),)
    assert summary.lines == (
        "NVIDIA H200, measured by fib-tools: 4 of 5 evaluations passed, rejected 1, timed with cupti",
    )


def test_without_a_baseline_speed_ups_are_over_the_reference(context: Context, tmp_path: Path) -> None:
    write_cases(context.dataset.root, [replace(FAST, gpu=CPU), replace(FAST, gpu=CPU, author="gpt", noise=0.1)])
    page = tmp_path / "report.html"
    standings, definition = report_benchmarks(context, html=page).summary().tables
    assert (standings.columns[3], definition.columns[2]) == ("x reference", "x reference")
    assert all(abs(float(row[3].removesuffix("x")) - 7.5) < 0.5 for row in standings.rows)
    assert all(abs(float(row[2].removesuffix("x")) - 7.5) < 0.5 for row in definition.rows)
    text = page.read_text(encoding="utf-8")
    assert text.count(">over reference<") == 3


def test_a_speed_up_on_some_of_the_sizes_says_on_how_many(context: Context) -> None:
    write_cases(context.dataset.root, [BASE, FAST, replace(FAST, axes={"n": 1 << 20}, percent=25.0)])
    _, definition = report_benchmarks(context).summary().tables
    assert [row[1:3] for row in definition.rows] == [("2/2", "1.60x on 1 of 2"), ("1/1", "1.00x")]


@pytest.mark.usefixtures("dataset")
def test_the_document_comes_back_as_it_was(context: Context) -> None:
    result = report_benchmarks(context)
    assert not result.has_errors
    assert read_strict(ReportResult, to_document(result), where="a report") == result
    assert set(ReportResult.row_fields) <= set(type(result.report.measurements[0]).model_fields)


def test_a_selection_narrows_it_and_one_of_nothing_is_refused(context: Context, dataset: Path) -> None:
    write_cases(dataset, [replace(FAST, gpu=CPU), replace(FAST, definition="other", op_type="noise")])
    assert [d.definition for d in report_benchmarks(context, definitions=("other",)).report.definitions] == ["other"]
    assert [d.definition for d in report_benchmarks(context, op_types=("noise",)).report.definitions] == ["other"]
    only = report_benchmarks(context, gpu="Epyc 9654")
    assert [d.device for d in only.report.devices] == ["Epyc 9654"]
    assert only.summary().tables[0].title == "leaderboard: Epyc 9654 (a CPU: no figure of a GPU), measured by fib-tools"
    with pytest.raises(RequestError, match="no Trace of an evaluation"):
        report_benchmarks(context, op_types=("nope",))
    with pytest.raises(RequestError, match="no Definition 'othre'") as caught:
        report_benchmarks(context, definitions=("other", "othre"))
    assert caught.value.todo == "did you mean other?"
    with pytest.raises(RequestError, match="nothing was measured on 'B200'") as caught:
        report_benchmarks(context, gpu="B200")
    assert caught.value.todo == "pass one of 'Epyc 9654', 'NVIDIA H200'"


def test_without_a_dataset_there_is_nothing_to_report(context: Context) -> None:
    with pytest.raises(RequestError, match="there is no dataset"):
        report_benchmarks(context)


def test_a_broken_trace_is_an_error_of_the_data(context: Context, dataset: Path) -> None:
    for number in range(7):
        example_dataset.write(dataset, f"traces/bad{number}/copy/copy_n4.jsonl", "{\n")
    result = report_benchmarks(context)
    assert result.has_errors
    lines = result.summary().lines
    assert lines[0].startswith("problem: traces/bad0/copy/copy_n4.jsonl:1: not JSON")
    assert lines[5] == "... and 2 more problems; --json has all"
    (dataset / "traces/ana/copy/copy_n4.jsonl").unlink()
    (dataset / "traces/baseline/copy/copy_n4.jsonl").unlink()
    (dataset / "traces/gpt/copy/copy_n4.jsonl").unlink()
    with pytest.raises(RequestError, match="the first problem: traces/bad0"):
        report_benchmarks(context)


def test_older_traces_are_counted(context: Context, dataset: Path) -> None:
    write_cases(dataset, [FAST])
    result = report_benchmarks(context)
    assert result.superseded == 1
    assert result.summary().lines[0].startswith("1 older traces are left out")


@pytest.mark.usefixtures("dataset")
def test_two_solutions_are_compared(context: Context) -> None:
    result = report_benchmarks(context, compare=("wrapper", "ana/fast"))
    (table,) = result.summary().tables
    assert table.columns == ("definition", "workload", "first", "second", "first/second", "95% interval", "verdict")
    assert [(row[1], row[4], row[-1]) for row in table.rows] == [
        ("n 4", "1.597", "second is faster"),
        ("n 1048576", "0.501", "first is faster"),
    ]
    assert "NVIDIA H200: first over second, geometric mean: 0.894 (above 1: the second is faster)" in (
        result.summary().lines
    )
    with pytest.raises(RequestError, match="no Traces of a Solution 'nobody'"):
        report_benchmarks(context, compare=("wrapper", "nobody"))


def test_two_datasets_are_compared(context: Context, tmp_path: Path) -> None:
    cases = [case for case in sample_cases() if case.op_type in {"rmsnorm", "gemm"}]
    one, other = write_cases(tmp_path / "one", cases), write_cases(tmp_path / "other", cases, seed=1)
    result = report_benchmarks(context, compare=(str(one), str(other)))
    (table,) = result.summary().tables
    assert table.columns[:3] == ("definition", "solution", "workload")
    assert len(table.rows) == 60
    lines = result.summary().lines
    assert any("by chance alone" in line for line in lines)
    assert any(line.startswith("60 of 96 pairs are shown") for line in lines)
    assert result.dataset == str(one)


def test_an_agent_compares_no_dataset_outside_its_workspace(context: Context, tmp_path: Path) -> None:
    one = write_cases(tmp_path / "one", [FAST])
    with pytest.raises(PathError):
        report_benchmarks(replace(context, is_confined=True), compare=(str(one), "../one"))


def test_of_many_definitions_the_first_are_shown(context: Context) -> None:
    write_cases(context.dataset.root, [replace(FAST, definition=f"copy_n{number}") for number in range(31)])
    summary = report_benchmarks(context).summary()
    assert len(summary.tables) == 31
    assert summary.lines[0].startswith("30 definitions of each device are shown")


@pytest.mark.usefixtures("dataset")
def test_the_page_is_written_where_it_was_asked_for(context: Context, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = report_benchmarks(context, html=page)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert result.summary().lines[-1] == f"page: {page}"


def test_lines_of_another_tool_make_a_report_too(context: Context) -> None:
    write_cases(context.dataset.root, [BASE, FAST], is_foreign=True)
    (device,) = report_benchmarks(context).report.devices
    assert (device.device, device.measured_by, device.is_cpu) == ("NVIDIA H200", "another tool", False)
    assert [s.speedup for s in device.leaderboard] == [pytest.approx(1.6, rel=0.01), 1.0]
