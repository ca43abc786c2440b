from __future__ import annotations

from bench_run import norm
from fib_tools.draft.elsewhere import list_elsewhere
from fib_tools.draft.target import Shape, Target
from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.model.solution import Language
from fib_tools.model.trace import EvaluationStatus


def target(*sizes: int) -> Target:
    shapes = tuple(Shape(workload=str(size), axes={"batch_size": size}, bytes=size) for size in sizes)
    return Target(definition=norm(), language=Language.PYTHON, hardware="no GPU", bounds={}, shapes=shapes)


def measured(
    size: int, author: str, milliseconds: float, percent: float | None, device: str = "NVIDIA H200"
) -> Measurement:
    return Measurement(
        definition=norm().name,
        op_type="rmsnorm",
        author=author,
        solution=f"of_{author}",
        workload=str(size),
        device=device,
        measured_by="fib-tools",
        status=EvaluationStatus.PASSED,
        milliseconds=milliseconds,
        percent=percent,
    )


def test_the_largest_sizes_have_the_fastest_baseline_and_solution_of_one_gpu() -> None:
    known = [
        *(measured(size, "baseline", 0.02, 50.0) for size in (1, 2, 4, 8)),
        measured(8, "slow", 0.03, 33.0),
        measured(8, "ana", 0.0125, 80.4),
        measured(16, "ben", 0.1, None),
        measured(8, "cem", 0.001, 90.0, device="NVIDIA B200"),
    ]
    assert list_elsewhere(target(1, 2, 4, 8, 16, 32), known) == [
        "## Measured on NVIDIA H200: baseline (of_baseline); best Solution (ana/of_ana, ben/of_ben)",
        "axes | baseline us, % of its limit | best Solution us, % of its limit",
        "batch_size=16 | - | 100",
        "batch_size=8 | 20, 50% | 12.5, 80%",
        "batch_size=4 | 20, 50% | -",
        "batch_size=2 | 20, 50% | -",
        "... and 1 more",
        "Measured on NVIDIA B200 too.",
    ]


def test_where_none_of_the_sizes_was_measured_nothing_is_said() -> None:
    assert list_elsewhere(target(1), [measured(2, "ana", 0.1, 50.0)]) == []
    assert list_elsewhere(target(1), []) == []
