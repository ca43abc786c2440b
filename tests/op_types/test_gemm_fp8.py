from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fib_tools.op_types.gemm_fp8 import GemmFp8BlockParameters
from fib_tools.op_types.registry import get_kernel_type


def _assert_one_rounding(actual: Any, exact: Any) -> None:
    assert ((actual.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6 * exact.abs().max()).all()


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("gemm_fp8_block", "gemm_fp8_block_scale_n2112_k7168"),
        ("gemm_fp8_tensor", "gemm_fp8_n2112_k7168"),
        ("gemm_fp8_channel", "gemm_fp8_channel_n2112_k7168"),
    ],
)
def test_a_product_conforms_under_its_canonical_name(
    kernel: str, name: str, check_conformance: Callable[..., None]
) -> None:
    check_conformance(kernel, name, n=2112, k=7168)


@pytest.mark.parametrize(("n", "k"), [(256, 384), (300, 200)])
def test_every_block_has_its_own_scale_even_a_short_one(n: int, k: int, try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel("gemm_fp8_block", n=n, k=k)
    a, b, a_scale, b_scale = (value.double() for value in trial.inputs.values())
    assert tuple(b_scale.shape) == (-(-n // 128), -(-k // 128))
    for row in range(n):
        for column in range(k):
            b[row, column] *= b_scale[row // 128, column // 128]
    a *= torch.stack([a_scale[:, column // 128] for column in range(k)], dim=1)
    _assert_one_rounding(trial.outputs["C"], a @ b.T)


def test_smaller_blocks_are_another_kernel_without_a_template(try_kernel: Callable[..., Any]) -> None:
    parameters = GemmFp8BlockParameters(n=64, k=96, block_n=32, block_k=64)
    assert parameters.qualifier() == "blockn32_blockk64"
    kernel = get_kernel_type("gemm_fp8_block")
    assert kernel.template is not None
    assert kernel.template(parameters) is None
    trial = try_kernel("gemm_fp8_block", **parameters.model_dump())
    a, b, a_scale, b_scale = (value.double() for value in trial.inputs.values())
    scaled = b * b_scale.repeat_interleave(32, 0).repeat_interleave(64, 1)[:, :96]
    _assert_one_rounding(trial.outputs["C"], (a * a_scale.repeat_interleave(64, 1)[:, :96]) @ scaled.T)


def test_one_scale_each_multiplies_the_product(try_kernel: Callable[..., Any]) -> None:
    trial = try_kernel("gemm_fp8_tensor", n=200, k=64)
    a, b, a_scale, b_scale = (value.double() for value in trial.inputs.values())
    assert a_scale.shape == b_scale.shape == ()
    _assert_one_rounding(trial.outputs["C"], (a * a_scale) @ (b * b_scale).T)


def test_rows_and_columns_have_their_own_scales(try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel("gemm_fp8_channel", n=200, k=64)
    a, b, a_scale, b_scale = (value.double() for value in trial.inputs.values())
    _assert_one_rounding(trial.outputs["C"], torch.diag(a_scale) @ a @ b.T @ torch.diag(b_scale))
