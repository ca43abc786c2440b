from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(("bias", "name"), [(True, "layernorm_h128"), (False, "layernorm_nobias_h128")])
def test_layernorm_conforms_and_names_a_missing_bias(
    bias: bool,  # noqa: FBT001  # a parameter of the test, not of an interface
    name: str,
    check_conformance: Callable[..., None],
) -> None:
    check_conformance("layernorm", name, hidden_size=128, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
def test_layernorm_is_that_of_torch_in_float64(
    bias: bool,  # noqa: FBT001  # a parameter of the test, not of an interface
    try_kernel: Callable[..., Any],
    ulps: Callable[..., float],
) -> None:
    import torch

    trial = try_kernel("layernorm", hidden_size=96, eps=1e-3, bias=bias)
    x, *parameters = (value.double() for value in trial.inputs.values())
    exact = torch.nn.functional.layer_norm(x, (96,), *parameters, eps=1e-3)
    assert ulps(trial.outputs["output"], exact) < 0.52
