from __future__ import annotations

from typing import Any

import pytest

from fib_tools.draft.attempt import ShapeResult
from fib_tools.draft.profile import explain_time
from fib_tools.model.trace import EvaluationStatus


def result(milliseconds: float | None, **own: Any) -> ShapeResult:
    return ShapeResult(
        workload="w", axes={"n": 1}, status=EvaluationStatus.PASSED, milliseconds=milliseconds, launches=1, **own
    )


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (result(None), ""),
        (result(0.05, percent=93.0, warm_ms=0.02), "at the limit"),
        (result(0.05, percent=40.0).model_copy(update={"launches": 9}), "9 launches, some 8 us between them: fuse"),
        (result(0.002, percent=5.0, warm_ms=0.001), "latency"),
        (result(0.02, percent=60.0, warm_ms=0.01), "waits for memory (a warm L2 saves 50%)"),
        (result(0.02, percent=50.0, warm_ms=0.0199), "not held up by memory"),
        (result(0.02, percent=80.0, warm_ms=0.0199), ""),
        (result(0.02, percent=80.0), ""),
    ],
)
def test_the_figures_tell_what_holds_a_kernel_up(case: ShapeResult, said: str) -> None:
    assert explain_time(case).startswith(said)
    assert bool(explain_time(case)) == bool(said)
