from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.registry import get_kernel_type

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def _unpack(packed: Any, scale: Any) -> Any:
    import torch

    rows = []
    for codes, scales in zip(packed.tolist(), scale.double().tolist(), strict=True):
        values = [E2M1[part] for code in codes for part in (code % 16, code % 256 // 16)]
        rows.append([value * scales[index // 16] for index, value in enumerate(values)])
    return torch.tensor(rows, dtype=torch.float64)


def test_a_product_conforms_under_its_canonical_name(check_conformance: Callable[..., None]) -> None:
    check_conformance("gemm_nvfp4", "gemm_nvfp4_n1024_k7168", n=1024, k=7168)


def test_a_product_is_within_one_rounding_of_float64(try_kernel: Callable[..., Any]) -> None:
    trial = try_kernel("gemm_nvfp4", n=150, k=64)
    a, b, a_scale, b_scale, alpha = trial.inputs.values()
    exact = alpha.double() * _unpack(a, a_scale) @ _unpack(b, b_scale).T
    error = (trial.outputs["C"].double() - exact).abs()
    assert (error <= 2**-8 * exact.abs() + 1e-6 * exact.abs().max()).all()


def test_a_row_of_half_a_scale_is_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of 16"):
        get_kernel_type("gemm_nvfp4").build({"n": 64, "k": 40})


def test_no_template_describes_it() -> None:
    assert get_kernel_type("gemm_nvfp4").template is None
