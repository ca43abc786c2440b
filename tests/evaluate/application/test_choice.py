from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fib_tools.evaluate.application.choice import Choice, Subject, choose_best
from fib_tools.evaluate.report.report_reading import OTHER_TOOL, OWN_TOOL
from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.model.evidence import Evidence, Gpu
from fib_tools.model.evidence import Subject as Evaluated
from fib_tools.model.solution import BuildSpec, Language, Solution, SourceFile
from fib_tools.model.trace import EvaluationStatus

GPU = "NVIDIA H200"
UUIDS = ("a", "b")


def _solution(name: str, author: str = "me") -> Solution:
    return Solution(
        name=name,
        definition="copy",
        author=author,
        spec=BuildSpec(language=Language.PYTHON, target_hardware=["sm90"], entry_point="main.py::run"),
        sources=[SourceFile(path="main.py", content=f"# {name}")],
    )


def _times(name: str, *milliseconds: float | None, author: str = "me", **own: Any) -> list[Measurement]:
    return [
        Measurement(
            **{
                "definition": "copy",
                "op_type": "copy",
                "author": author,
                "solution": name,
                "workload": uuid,
                "device": GPU,
                "measured_by": OWN_TOOL,
                "timer": "cupti",
                "status": EvaluationStatus.PASSED if time else EvaluationStatus.TIMEOUT,
                "milliseconds": time,
                **own,
            }
        )
        for uuid, time in zip(UUIDS, milliseconds, strict=False)
    ]


def _choose(
    measurements: list[Measurement],
    *names: str,
    least_ratio: float = 1.0,
    evidence: Mapping[str, Evidence] | None = None,
    counts: tuple[int | None, int | None] = (None, None),
) -> Choice:
    solutions = [_solution("wrapper", "baseline"), *(_solution(name) for name in names)]
    subject = Subject(
        definition="copy", solutions=solutions, workloads=dict(zip(UUIDS, counts, strict=True)), device=GPU
    )
    return choose_best(subject, measurements, evidence or {}, least_ratio=least_ratio)


BASE = _times("wrapper", 2.0, 8.0, author="baseline")


def test_the_fastest_by_geometric_mean_is_chosen() -> None:
    choice = _choose([*BASE, *_times("even", 2.0, 2.0), *_times("odd", 0.5, 7.0)], "even", "odd")
    assert choice.solution is not None
    assert choice.solution.name == "odd"
    assert choice.milliseconds == pytest.approx(3.5**0.5)
    assert choice.ratio == pytest.approx((16 / 3.5) ** 0.5)


def test_workloads_count_as_often_as_they_occur_if_all_say_it() -> None:
    times = [*BASE, *_times("even", 2.0, 2.0), *_times("odd", 0.5, 7.0)]
    choice = _choose(times, "even", "odd", counts=(1, 3))
    assert choice.solution is not None
    assert choice.solution.name == "even"
    assert choice.ratio == pytest.approx(4.0**0.75)
    assert _choose(times, "even", "odd", counts=(1, None)) == _choose(times, "even", "odd")


def test_the_fastest_baseline_of_each_workload_is_the_yardstick() -> None:
    other = _times("other", 4.0, 2.0, author="baseline")
    choice = _choose([*BASE, *other, *_times("mine", 2.0, 2.0)], "mine")
    assert choice.ratio == pytest.approx(1.0)


@pytest.mark.parametrize(
    "measurements",
    [
        _times("mine", 1.0),
        _times("mine", 1.0, None),
        _times("mine", 1.0, 1.0, device="NVIDIA B200"),
        _times("mine", 1.0, 1.0, measured_by=OTHER_TOOL),
        _times("mine", 1.0, 1.0, definition="other"),
        _times("mine", 1.0, 1.0, author="you"),
    ],
)
def test_all_else_counts_as_not_passed(measurements: list[Measurement]) -> None:
    choice = _choose([*BASE, *measurements], "mine")
    assert choice.solution is None
    assert "all 2 Workloads on NVIDIA H200" in choice.reason


def test_times_of_workloads_that_are_no_more_do_not_count() -> None:
    gone = [each.model_copy(update={"workload": "gone", "milliseconds": 1e-6}) for each in _times("mine", 1.0)]
    choice = _choose([*BASE, *_times("mine", 2.0, 2.0), *gone], "mine")
    assert choice.milliseconds == pytest.approx(2.0)


def test_what_is_slower_than_the_baseline_needs_leave() -> None:
    slow = _times("mine", 4.0, 16.0)
    assert "0.500 times" in _choose([*BASE, *slow], "mine").reason
    found = _choose([*BASE, *slow], "mine", least_ratio=0.0)
    assert found.solution is not None
    assert found.ratio == pytest.approx(0.5)


def test_without_a_comparable_baseline_there_is_no_ratio() -> None:
    mine = _times("mine", 1.0, 1.0)
    otherwise = _times("wrapper", 2.0, 8.0, author="baseline", timer="events")
    for baseline, reason in (([], "no baseline"), (BASE[:1], "no baseline"), (otherwise, "timed in different ways")):
        assert reason in _choose([*baseline, *mine], "mine").reason
        assert _choose([*baseline, *mine], "mine", least_ratio=0.0).solution is not None


def test_no_workloads_choose_nothing() -> None:
    subject = Subject(definition="copy", solutions=[_solution("mine")], workloads={}, device=GPU)
    assert "no Workloads" in choose_best(subject, [], {}, least_ratio=0.0).reason


def test_a_solution_that_changed_since_it_was_measured_does_not_count() -> None:
    mine = _times("mine", 1.0, 1.0, evidence="k")
    for digest, is_chosen in ((_solution("mine").hash, True), ("another", False)):
        subject = Evaluated(
            definition="copy",
            definition_hash="d",
            workload="a",
            workload_hash="w",
            solution="mine",
            solution_hash=digest,
            author="me",
            device=GPU,
        )
        seen = Evidence(subject=subject, status=EvaluationStatus.PASSED, gpu=Gpu(name=GPU))
        choice = _choose([*BASE, *mine], "mine", evidence={"k": seen})
        assert (choice.solution is not None) == is_chosen
