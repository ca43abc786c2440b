from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench_dataset import CPU, Case, write_cases
from fib_tools.dataset.store import Dataset
from fib_tools.errors import RequestError
from fib_tools.evaluate.report.report_compare import compare_readings, compare_solutions, find_solution
from fib_tools.evaluate.report.report_reading import Reading, read_measurements
from fib_tools.evaluate.report.report_schema import Verdict
from fib_tools.model.evidence import Timer
from fib_tools.model.trace import EvaluationStatus

FAST = Case(definition="d", op_type="copy", author="ana", solution="fast", axes={"n": 4}, percent=80, bytes=1 << 30)
SLOW = replace(FAST, author="gpt", solution="slow", percent=60)
FAILED = EvaluationStatus.TIMEOUT


def read(root: Path, *cases: Case, seed: int = 0, is_foreign: bool = False) -> Reading:
    return read_measurements(Dataset(write_cases(root, list(cases), seed=seed, is_foreign=is_foreign)))


def compare(root: Path, *cases: Case, is_foreign: bool = False) -> list[Verdict]:
    reading = read(root, *cases, is_foreign=is_foreign)
    return [pair.verdict for pair in compare_solutions(reading, ("ana", "fast"), ("gpt", "slow")).pairs]


def test_a_ratio_comes_with_its_interval(tmp_path: Path) -> None:
    comparison = compare_solutions(read(tmp_path, FAST, SLOW), ("ana", "fast"), ("gpt", "slow"))
    (pair,) = comparison.pairs
    assert (comparison.first, comparison.second) == ("ana/fast", "gpt/slow")
    assert pair.verdict is Verdict.FIRST
    assert pair.low is not None
    assert pair.high is not None
    assert pair.low < (327.36 + 1.6) / (436.48 + 1.6) < pair.high
    assert comparison.ratios == {"NVIDIA H200": pytest.approx(0.75, rel=0.01)}
    swapped = compare_solutions(read(tmp_path), ("gpt", "slow"), ("ana", "fast"))
    assert swapped.count(Verdict.SECOND) == 1


def test_equal_solutions_do_not_differ(tmp_path: Path) -> None:
    assert compare(tmp_path, FAST, replace(SLOW, percent=80)) == [Verdict.SAME]


def test_what_cannot_be_judged_says_why(tmp_path: Path) -> None:
    cases = {
        "few": ([FAST, replace(SLOW, samples=7)], Verdict.NO_SAMPLES),
        "first": ([FAST, replace(SLOW, status=FAILED)], Verdict.ONLY_FIRST),
        "second": ([replace(FAST, status=FAILED), SLOW], Verdict.ONLY_SECOND),
        "neither": ([replace(FAST, status=FAILED), replace(SLOW, status=FAILED)], Verdict.NEITHER),
        "timers": ([FAST, replace(SLOW, timer=Timer.EVENTS)], Verdict.TIMERS),
    }
    assert {name: compare(tmp_path / name, *sides) for name, (sides, _) in cases.items()} == {
        name: [verdict] for name, (_, verdict) in cases.items()
    }


def test_traces_of_another_tool_have_a_ratio_without_a_verdict(tmp_path: Path) -> None:
    reading = read(tmp_path, FAST, SLOW, is_foreign=True)
    (pair,) = compare_solutions(reading, ("ana", "fast"), ("gpt", "slow")).pairs
    assert (pair.verdict, pair.low, pair.device) == (Verdict.NO_SAMPLES, None, "NVIDIA H200 (another tool)")
    assert pair.ratio == pytest.approx(0.75, rel=0.01)


def test_devices_are_compared_each_for_itself(tmp_path: Path) -> None:
    slow_cpu = replace(SLOW, gpu=CPU, percent=40)
    comparison = compare_solutions(
        read(tmp_path, FAST, SLOW, replace(FAST, gpu=CPU), slow_cpu), ("ana", "fast"), ("gpt", "slow")
    )
    assert [pair.device for pair in comparison.pairs] == ["Epyc 9654", "NVIDIA H200"]
    assert {device: round(ratio, 1) for device, ratio in comparison.ratios.items()} == {
        "Epyc 9654": 0.5,
        "NVIDIA H200": 0.8,
    }


def test_two_runs_are_compared_solution_by_solution_in_order_of_size(tmp_path: Path) -> None:
    large = replace(FAST, axes={"n": 900})
    one = read(tmp_path / "one", large, FAST, SLOW)
    other = read(tmp_path / "other", large, FAST, replace(SLOW, percent=80), replace(SLOW, solution="new"), seed=1)
    comparison = compare_readings(("one", one), ("other", other))
    assert [(pair.first, pair.label, pair.verdict) for pair in comparison.pairs] == [
        ("ana/fast", "n 4", Verdict.SAME),
        ("gpt/slow", "n 4", Verdict.SECOND),
        ("ana/fast", "n 900", Verdict.SAME),
    ]


def test_sides_that_share_nothing_are_refused(tmp_path: Path) -> None:
    reading = read(tmp_path, FAST, replace(SLOW, axes={"n": 5}))
    with pytest.raises(RequestError, match="no common workload"):
        compare_solutions(reading, ("ana", "fast"), ("gpt", "slow"))


def test_a_solution_is_found_by_its_name_or_with_its_author(tmp_path: Path) -> None:
    reading = read(tmp_path, FAST, SLOW, replace(FAST, author="gpt"))
    assert find_solution(reading, "slow") == ("gpt", "slow")
    assert find_solution(reading, "gpt/fast") == ("gpt", "fast")
    assert find_solution(reading, "nobody") is None
    with pytest.raises(RequestError, match="several Solutions") as caught:
        find_solution(reading, "fast")
    assert caught.value.todo == "say which: ana/fast, gpt/fast"
