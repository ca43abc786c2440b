from __future__ import annotations

import pytest

from fib_tools.draft.ranking import rank_kernels
from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.model.trace import EvaluationStatus


def measured(
    definition: str,
    milliseconds: float,
    percent: float,
    *,
    workload: str = "w",
    author: str = "baseline",
    passed: bool = True,
) -> Measurement:
    return Measurement(
        definition=definition,
        op_type="x",
        author=author,
        solution="s",
        workload=workload,
        device="NVIDIA H200",
        measured_by="fib-tools",
        status=EvaluationStatus.PASSED if passed else EvaluationStatus.RUNTIME_ERROR,
        milliseconds=milliseconds,
        percent=percent,
    )


def test_what_runs_often_and_far_from_the_limit_comes_first() -> None:
    ranked = rank_kernels(
        {"once": 1, "often": 60, "near": 60, "unknown": 60},
        [measured("once", 1.0, 10.0), measured("often", 0.1, 50.0), measured("near", 0.2, 95.0)],
    )
    assert [row.definition for row in ranked] == ["often", "once", "near"]
    assert sum(row.share for row in ranked) == pytest.approx(1.0)
    assert ranked[0].gain == pytest.approx(60 * 0.05 / 19.0)


def test_the_fastest_right_solution_of_each_workload_counts() -> None:
    (row,) = rank_kernels(
        {"a": 2},
        [
            measured("a", 0.4, 40.0),
            measured("a", 0.2, 80.0, author="ada"),
            measured("a", 0.1, 160.0, passed=False),
            measured("a", 0.6, 50.0, workload="v"),
            measured("b", 9.0, 1.0),
        ],
    )
    assert (row.milliseconds, row.limit_ms) == (pytest.approx(0.4), pytest.approx((0.16 + 0.3) / 2))
    assert row.share == 1.0


def test_a_kernel_faster_than_its_limit_has_nothing_to_gain() -> None:
    (row,) = rank_kernels({"a": 0}, [measured("a", 0.1, 130.0)])
    assert (row.layers, row.gain) == (1, 0.0)
    assert rank_kernels({"a": 1}, []) == ()
