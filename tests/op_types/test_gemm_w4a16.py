from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("group_size", "name"), [(128, "gemm_w4a16_g128_n1024_k4096"), (32, "gemm_w4a16_g32_n1024_k4096")]
)
def test_a_product_conforms_under_its_canonical_name(
    group_size: int, name: str, check_conformance: Callable[..., None]
) -> None:
    check_conformance("gemm_w4a16", name, n=1024, k=4096, group_size=group_size)


def _unpack(words: Any) -> list[list[int]]:
    """Take eight values from each word, the first in the lowest bits, 8 above what they mean."""
    return [[(word >> shift) % 16 - 8 for word in row for shift in range(0, 32, 4)] for row in words.tolist()]


@pytest.mark.parametrize("k", [64, 80])
def test_a_product_is_within_one_rounding_of_float64(k: int, try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel("gemm_w4a16", n=150, k=k, group_size=32)
    a, words, scale = trial.inputs.values()
    factors = scale.double().repeat_interleave(32, dim=1)[:, :k]
    exact = a.double() @ (torch.tensor(_unpack(words), dtype=torch.float64) * factors).T
    error = (trial.outputs["C"].double() - exact).abs()
    assert (error <= 2**-8 * exact.abs() + 1e-6 * exact.abs().max()).all()


def test_the_packing_is_the_checkpoints(run_reference: Callable[..., Any]) -> None:
    import torch

    from fib_tools.op_types.registry import get_kernel_type

    definition = get_kernel_type("gemm_w4a16").build({"n": 1, "k": 8, "group_size": 8})
    values = [-8, -7, -1, 0, 1, 2, 6, 7]
    word = sum((value + 8) << (4 * index) for index, value in enumerate(values))
    packed = torch.tensor([[word - (1 << 32) if word >= 1 << 31 else word]], dtype=torch.int32)
    (output,) = run_reference(definition, torch.eye(8, dtype=torch.bfloat16), packed, torch.ones(1, 1).bfloat16())
    assert output.flatten().tolist() == values
