from __future__ import annotations

import math

import pytest
import torch

from fib_tools.evaluate.calibration.calibration import find_tolerances
from fib_tools.evaluate.judge.device import Device
from fib_tools.evaluate.judge.outputs import count_same, has_stale, join_calls, rehearse_comparisons
from fib_tools.op_types.registry import get_kernel_type
from kernel_examples import KERNEL_EXAMPLES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_known_calls_are_counted_by_their_bits_and_further_ones_join_them(dtype: torch.dtype) -> None:
    whole = torch.arange(24).remainder(2).to(dtype).view(4, 6)
    strided = whole.new_zeros(4, 8)[:, :6]  # as outputs lie in the slots of an arena
    strided.view(torch.uint8 if dtype.itemsize == 1 else dtype).copy_(
        whole.view(torch.uint8 if dtype.itemsize == 1 else dtype)
    )
    known, left = {"y": whole[:3].clone()}, {"y": strided[3:].clone()}
    assert count_same({"y": strided}, known) == 3
    assert count_same({"y": strided}, {}) == 0
    joined = join_calls(known, left)
    assert joined["y"].dtype == dtype
    assert count_same({"y": strided}, joined) == 4
    assert count_same({"y": strided[:2]}, joined) == 2
    strided[0, 0] = 1
    assert count_same({"y": strided}, joined) == 0


def test_a_rightful_nan_is_known_and_a_changed_sign_of_zero_is_not() -> None:
    known = {"y": torch.tensor([[float("nan"), 0.0]])}
    assert count_same({"y": torch.tensor([[float("nan"), 0.0]])}, known) == 1
    assert count_same({"y": torch.tensor([[float("nan"), -0.0]])}, known) == 0


@pytest.mark.parametrize("kernel_id", list(KERNEL_EXAMPLES))
def test_comparing_can_be_rehearsed_for_every_kernel(kernel_id: str) -> None:
    kernel = get_kernel_type(kernel_id)
    definition = kernel.build(KERNEL_EXAMPLES[kernel_id])
    rehearse_comparisons(Device("cpu"), definition, find_tolerances(definition, kernel, None))


WANT = torch.arange(12.0).view(3, 4)


@pytest.mark.parametrize("calls", [[0, 1, 1], [2, 1, 2], [0, 0, 0]])
def test_a_result_is_stale_if_another_call_gave_the_same_bits(calls: list[int]) -> None:
    assert has_stale({"y": WANT[calls]}, {"y": WANT})


@pytest.mark.parametrize("got", [WANT, WANT + 1, torch.zeros(3, 4), torch.full((3, 4), math.nan)])
def test_other_results_or_one_value_throughout_are_not_stale(got: torch.Tensor) -> None:
    assert not has_stale({"y": got}, {"y": WANT})


def test_calls_that_ask_for_the_same_may_give_the_same() -> None:
    assert not has_stale({"y": WANT[[1, 1]] + 1}, {"y": WANT[[0, 0]]})


def test_of_several_outputs_each_must_be_the_same() -> None:
    got = {"y": WANT[[0, 0, 2]], "z": WANT[[0, 1, 2]]}
    assert not has_stale(got, {"y": WANT, "z": WANT})
    assert has_stale({**got, "z": torch.zeros(3, 1)}, {"y": WANT, "z": WANT})
