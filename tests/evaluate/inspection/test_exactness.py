from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench_run import HALF_ROW, HONEST, norm, solution, workload
from fib_tools.evaluate.calibration.calibration import find_tolerances
from fib_tools.evaluate.inspection.exactness import PRELOAD, Exactness, list_numbers, measure_exactness
from fib_tools.evaluate.inspection.sample import Sample, Setting
from fib_tools.gate.recognise import find_kernel
from fib_tools.host.sandbox import Sandbox
from fib_tools.model.definition import Definition
from fib_tools.op_types.registry import get_kernel_type

IN_BF16 = HONEST.replace("hidden_states.float()", "hidden_states").replace("weight.float()", "weight")
ZEROS = """
import torch

def run(hidden_states, weight):
    import sys
    child = sys.modules["fib_tools.evaluate.inspection._exact_child"]
    child._measure = lambda *_: {"dtype": "bfloat16", "error": 0.0, "reference_error": 0.0, "bound": 1.0}
    child.row_rms = child.split_rows = None
    torch.Tensor.double = lambda self: self * 0
    return torch.zeros_like(hidden_states)
"""
ENDS = "import os\n\ndef run(hidden_states, weight):\n    os._exit(3)\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(PRELOAD) as opened:
        yield opened


def measure(sandbox: Sandbox, *sources: str, definition: Definition | None = None, size: int = 8) -> list[Exactness]:
    chosen = definition or norm()
    setting = Setting(
        definition=chosen,
        tolerances=find_tolerances(chosen, find_kernel(norm())),
        device="cpu",
        dataset=Path("/nowhere"),
        seconds=60.0,
    )
    samples = [Sample(solution=solution("s", source), workload=workload(size), seed=7) for source in sources]
    return measure_exactness(sandbox, setting, samples)


def test_a_right_solution_errs_as_the_reference_does_and_a_wrong_one_beyond_the_bound(sandbox: Sandbox) -> None:
    right, coarse, wrong = (each.outputs["output"] for each in measure(sandbox, HONEST, IN_BF16, HALF_ROW))
    assert (right.dtype, right.error) == ("bfloat16", right.reference_error)
    assert coarse.error > 0
    assert right.reference_error == coarse.reference_error == wrong.reference_error <= right.bound
    assert wrong.error > wrong.bound > 0


def test_a_solution_cannot_change_what_is_measured_of_it(sandbox: Sandbox) -> None:
    (found,) = measure(sandbox, ZEROS)
    assert found.outputs["output"].error > 1.0


def test_a_reference_that_cannot_run_in_float64_has_no_stand_in(sandbox: Sandbox) -> None:
    single = "    assert str(hidden_states.float().dtype).endswith('32'), 'single only'\n"
    text = norm().reference.replace("def run(hidden_states, weight):\n", "def run(hidden_states, weight):\n" + single)
    assert single in text
    (found,) = measure(sandbox, HONEST, definition=norm().model_copy(update={"reference": text}))
    assert found.outputs == {}
    assert found.problem == "the reference cannot be compared with float64: float64: AssertionError: single only"


def test_a_reference_without_float32_has_nothing_to_widen(sandbox: Sandbox) -> None:
    text = "def run(hidden_states, weight):\n    return hidden_states * weight\n"
    (found,) = measure(sandbox, HONEST, definition=norm().model_copy(update={"reference": text}))
    assert "nothing in float32 that could be widened" in found.problem


def test_a_call_that_fails_and_outputs_that_are_too_large_are_told(sandbox: Sandbox) -> None:
    (failed,) = measure(sandbox, ENDS)
    assert failed.problem.startswith("its call failed when it was made again: ")
    (large,) = measure(sandbox, HONEST, size=(16 << 20) // 128 + 1)
    assert large.problem == "its outputs have more than 16 MB"


def test_experts_and_draws_have_no_error_against_float64() -> None:
    kernel = get_kernel_type("rmsnorm")
    assert list(list_numbers(norm(), find_tolerances(norm(), kernel))) == ["output"]
    choices = {
        name: bound.__class__(rtol=0.0, atol=0.0, how="choice")
        for name, bound in find_tolerances(norm(), kernel).items()
    }
    assert list_numbers(norm(), choices) == {}
