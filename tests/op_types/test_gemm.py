from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fib_tools.op_types.gemm import BmmParameters, GemmParameters
from fib_tools.op_types.registry import get_kernel_type


def _assert_one_rounding(actual: Any, exact: Any) -> None:
    assert ((actual.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6 * exact.abs().max()).all()


@pytest.mark.parametrize(
    ("kernel", "name", "parameters"),
    [
        ("gemm", "gemm_n4096_k14336", {"n": 4096, "k": 14336}),
        ("gemm", "gemm_n256_k7168", {"n": 256, "k": 7168}),
        ("bmm", "bmm_b16_n512_k128", {"b": 16, "n": 512, "k": 128}),
    ],
)
def test_a_product_conforms_under_its_canonical_name(
    kernel: str, name: str, parameters: dict[str, Any], check_conformance: Callable[..., None]
) -> None:
    check_conformance(kernel, name, **parameters)


def test_the_interface_is_that_of_the_dataset() -> None:
    definition = get_kernel_type("gemm").build({"n": 6144, "k": 4096})
    assert {name: spec.shape for name, spec in definition.inputs.items()} == {"A": ["M", "K"], "B": ["N", "K"]}
    assert {name: spec.shape for name, spec in definition.outputs.items()} == {"C": ["M", "N"]}
    assert definition.const_axes == {"N": 6144, "K": 4096}


def test_a_bias_is_in_the_name_and_added_to_every_row(try_kernel: Callable[..., Any]) -> None:
    trial = try_kernel("gemm", n=48, k=32, bias=True)
    assert trial.definition.name == "gemm_bias_n48_k32"
    a, b, bias = (value.double() for value in trial.inputs.values())
    _assert_one_rounding(trial.outputs["C"], a @ b.T + bias)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_product_is_within_one_rounding_of_float64(dtype: str, try_kernel: Callable[..., Any]) -> None:
    trial = try_kernel("gemm", n=5000, k=96, dtype=dtype)
    a, b = (value.double() for value in trial.inputs.values())
    _assert_one_rounding(trial.outputs["C"], a @ b.T)


def test_a_batched_product_is_within_one_rounding_of_float64(try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel("bmm", b=3, n=40, k=24)
    a, b = (value.double() for value in trial.inputs.values())
    _assert_one_rounding(trial.outputs["C"], torch.einsum("bmk,bkn->bmn", a, b))


def test_another_element_type_has_a_qualifier_and_no_template() -> None:
    kernel = get_kernel_type("gemm")
    assert kernel.template is not None
    assert GemmParameters(n=8, k=8, dtype="float16").qualifier() == "dtypefloat16"
    assert kernel.template(GemmParameters(n=8, k=8, dtype="float16")) is None


def test_the_template_is_for_bfloat16_without_a_bias() -> None:
    gemm, bmm = get_kernel_type("gemm").template, get_kernel_type("bmm").template
    assert gemm is not None
    assert bmm is not None
    assert gemm(GemmParameters(n=8, k=8)) is not None
    assert gemm(GemmParameters(n=8, k=8, bias=True)) is None
    assert bmm(BmmParameters(b=2, n=8, k=8, dtype="float16")) is None
