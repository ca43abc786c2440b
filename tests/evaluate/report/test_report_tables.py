from __future__ import annotations

from pathlib import Path

import pytest

from bench_dataset import CPU, Case, write_cases
from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.report.report_reading import OTHER_TOOL, OWN_TOOL, Reading, read_measurements
from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.evaluate.report.report_tables import build_report, geometric_mean, label_workloads
from fib_tools.model.trace import EvaluationStatus


def measure(  # noqa: PLR0913
    author: str,
    milliseconds: float | None,
    workload: str = "w1",
    *,
    solution: str = "",
    definition: str = "d",
    device: str = "H200",
    measured_by: str = OWN_TOOL,
    timer: str = "cupti",
    rule: str | None = None,
) -> Measurement:
    return Measurement(
        definition=definition,
        op_type="copy",
        author=author,
        solution=solution or f"{author}_1",
        workload=workload,
        device=device,
        measured_by=measured_by,
        timer=timer,
        status=EvaluationStatus.PASSED if milliseconds else EvaluationStatus.RUNTIME_ERROR,
        rule=rule,
        detail="seen" if rule else "",
        milliseconds=milliseconds,
        percent=50.0 if milliseconds else None,
    )


def read(*measurements: Measurement) -> Reading:
    axes = {m.workload: {"n": int(m.workload[1:])} for m in measurements}
    return Reading(measurements=measurements, axes=axes, evidence={})


def test_a_speedup_is_over_the_fastest_baseline_of_the_same_workload() -> None:
    report = build_report(
        read(
            measure("baseline", 4.0, solution="slow"),
            measure("baseline", 2.0, solution="quick"),
            measure("baseline", 9.0, "w2"),
            measure("ana", 1.0),
            measure("ana", None, "w2"),
            measure("ana", 1.0, "w3"),
        )
    )
    speedups = {(m.author, m.solution, m.workload): m.speedup for m in report.measurements}
    assert speedups == {
        ("baseline", "slow", "w1"): 0.5,
        ("baseline", "quick", "w1"): 1.0,
        ("baseline", "baseline_1", "w2"): 1.0,
        ("ana", "ana_1", "w1"): 2.0,
        ("ana", "ana_1", "w2"): None,
        ("ana", "ana_1", "w3"): None,
    }
    (definition,) = report.definitions
    assert [(w.label, w.baseline_ms) for w in definition.workloads] == [("n 1", 2.0), ("n 2", 9.0), ("n 3", None)]


@pytest.mark.parametrize(
    "other", [{"device": "B200"}, {"measured_by": OTHER_TOOL}, {"timer": "events"}, {"definition": "e"}]
)
def test_a_baseline_measured_otherwise_is_no_yardstick(other: dict[str, str]) -> None:
    report = build_report(read(measure("baseline", 2.0), measure("ana", 1.0, **other)))  # type: ignore[arg-type]
    assert [m.speedup for m in report.measurements if m.author == "ana"] == [None]


def test_devices_and_other_tools_are_never_mixed() -> None:
    report = build_report(
        read(
            measure("ana", 1.0, measured_by=OTHER_TOOL),
            measure("ana", 1.0, device="B200"),
            measure("ana", 1.0),
            measure("gpt", 1.0),
        )
    )
    found = [(d.device, d.measured_by, d.evaluations) for d in report.devices]
    assert found == [("H200", OWN_TOOL, 2), ("B200", OWN_TOOL, 1), ("H200", OTHER_TOOL, 1)]
    assert [(d.device, d.measured_by) for d in report.definitions] == [item[:2] for item in found]


def test_fast_p_counts_what_failed_or_was_not_attempted_as_not_passed() -> None:
    report = build_report(
        read(
            *(measure("baseline", 2.0, f"w{place}") for place in range(1, 5)),
            measure("baseline", None, "w5"),
            measure("ana", 1.0, "w1"),
            measure("ana", 2.0, "w2"),
            measure("ana", None, "w3"),
            measure("ana", 1.0, "w5"),
        )
    )
    (curve,) = report.devices[0].curves
    assert (curve.name, curve.workloads, curve.speedups) == ("ana", 4, (1.0, 2.0))
    assert curve.fast == {"0.5": 0.5, "0.8": 0.5, "1": 0.5, "1.5": 0.25, "2": 0.25, "4": 0.0}
    (ana,) = (s for s in report.devices[0].leaderboard if s.author == "ana")
    assert (ana.passed, ana.attempted, ana.correct, ana.fast_1) == (3, 4, 0.75, 0.5)
    assert ana.speedup == pytest.approx(2.0**0.5)


def test_an_author_is_judged_by_the_best_solution_of_each_workload() -> None:
    report = build_report(
        read(
            *(measure("baseline", 2.0, workload) for workload in ("w1", "w2")),
            measure("ana", 1.0, "w1", solution="a"),
            measure("ana", 4.0, "w2", solution="a"),
            measure("ana", 4.0, "w1", solution="b"),
            measure("ana", 1.0, "w2", solution="b"),
            measure("gpt", 0.5, "w1"),
        )
    )
    device = report.devices[0]
    assert [(s.author, s.fast_1, s.solutions) for s in device.leaderboard] == [
        ("ana", 1.0, 2),
        ("baseline", 1.0, 1),
        ("gpt", 0.5, 1),
    ]
    assert [(curve.name, curve.speedups) for curve in device.curves] == [
        ("best of all", (2.0, 4.0)),
        ("ana", (2.0, 2.0)),
        ("gpt", (4.0,)),
    ]


def test_without_a_baseline_or_without_rivals_there_is_no_curve() -> None:
    for only in ("baseline", "ana"):
        assert build_report(read(measure(only, 1.0))).devices[0].curves == ()


def test_the_best_solution_of_a_definition_comes_first() -> None:
    report = build_report(
        read(
            measure("baseline", 2.0),
            measure("baseline", 2.0, "w2"),
            measure("ana", 1.0),
            measure("ana", 1.5, "w2"),
            measure("gpt", 0.1),
            measure("gpt", None, "w2"),
        )
    )
    assert [s.author for s in report.definitions[0].solutions] == ["ana", "baseline", "gpt"]


def test_rejections_are_listed_by_rule() -> None:
    report = build_report(
        read(
            measure("gpt", None, rule="uneven"),
            measure("gpt", None, "w2", rule="uneven"),
            measure("ana", None, rule="audit"),
            measure("ana", None, "w2"),
        )
    )
    assert [(r.rule, r.author, r.workloads, r.detail) for r in report.devices[0].rejections] == [
        ("audit", "ana", 1, "seen"),
        ("uneven", "gpt", 2, "seen"),
    ]
    assert report.devices[0].rejected == 3


def test_workloads_are_named_by_the_axes_that_tell_them_apart() -> None:
    axes = {
        "b": {"batch": 8, "len_indptr": 9, "heads": 4},
        "a": {"batch": 2, "len_indptr": 3, "heads": 4},
    }
    assert label_workloads(axes) == {"a": "batch 2", "b": "batch 8"}
    assert label_workloads({"a": {"n": 1}, "b": {"n": 1}}) == {"a": "n 1 #1", "b": "n 1 #2"}
    assert label_workloads({"a": {}}) == {"a": "no axes"}
    two = {"a": {"m": 1, "n": 2}, "b": {"m": 1, "n": 3}, "c": {"m": 2, "n": 3}}
    assert list(label_workloads(two).values()) == ["m 1 n 2", "m 1 n 3", "m 2 n 3"]


def test_a_geometric_mean_is_of_what_is_there() -> None:
    assert geometric_mean([1.0, None, 4.0, 0.0, float("inf")]) == pytest.approx(2.0)
    assert geometric_mean([None]) is None


def test_a_cpu_is_told_as_one(tmp_path: Path) -> None:
    cases = [
        Case(definition="d", op_type="copy", author="ana", solution="s", axes={"n": 4}, gpu=gpu)
        for gpu in (CPU, CPU.model_copy(update={"name": "NVIDIA H200", "capability": 90}))
    ]
    report = build_report(read_measurements(Dataset(write_cases(tmp_path, cases))))
    assert [(d.device, d.is_cpu) for d in report.devices] == [("NVIDIA H200", False), ("Epyc 9654", True)]
