from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fib_tools.op_types.registry import get_kernel_type

KERNELS = ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "relu2", "swiglu_oai")


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_activation_conforms_under_its_canonical_name(kernel: str, check_conformance: Callable[..., None]) -> None:
    check_conformance(kernel, f"{kernel}_i1408", intermediate_size=1408)


@pytest.mark.parametrize(
    ("kernel", "function"), [("silu", "silu"), ("gelu", "gelu"), ("gelu_tanh", "gelu_pytorch_tanh")]
)
def test_an_activation_alone_conforms_and_is_that_of_transformers(
    kernel: str, function: str, check_conformance: Callable[..., None], try_kernel: Callable[..., Any]
) -> None:
    import torch
    from transformers.activations import ACT2FN

    check_conformance(kernel, f"{kernel}_h1408", intermediate_size=1408)
    trial = try_kernel(kernel, intermediate_size=48, dtype="float32")
    torch.testing.assert_close(trial.outputs["output"], ACT2FN[function](trial.inputs["input"]))


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("silu_and_mul", "silu"),
        ("gelu_and_mul", "gelu"),
        ("gelu_tanh_and_mul", "gelu_pytorch_tanh"),
        ("relu2", "relu2"),
    ],
)
def test_an_activation_is_that_of_transformers(kernel: str, name: str, try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.activations import ACT2FN

    trial = try_kernel(kernel, intermediate_size=48, dtype="float32")
    x = trial.inputs["input"]
    expected = ACT2FN[name](x) if kernel == "relu2" else ACT2FN[name](x[:, :48]) * x[:, 48:]
    torch.testing.assert_close(trial.outputs["output"], expected)


def test_the_clamped_swiglu_is_that_of_gpt_oss(run_reference: Callable[..., Any]) -> None:
    import torch
    from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    experts = GptOssExperts(GptOssConfig(hidden_size=8, intermediate_size=8, num_local_experts=1))
    gate_up = 6.0 * torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    assert (gate_up > 7.0).any()
    assert (gate_up < -7.0).any()
    definition = get_kernel_type("swiglu_oai").build({"intermediate_size": 16, "dtype": "float32"})
    torch.testing.assert_close(run_reference(definition, gate_up)[0], experts._apply_gate(gate_up))


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_activation_is_within_one_rounding_of_float64(
    kernel: str, try_kernel: Callable[..., Any], run_reference: Callable[..., Any], ulps: Callable[..., float]
) -> None:
    trial = try_kernel(kernel, intermediate_size=48)
    exact = run_reference(
        trial.definition.model_copy(
            update={
                "reference": trial.definition.reference.replace("float32", "float64").replace("input.dtype", "x.dtype")
            }
        ),
        trial.inputs["input"],
    )[0]
    assert str(exact.dtype) == "torch.float64"
    assert ulps(trial.outputs["output"], exact) < 0.51


def test_the_constants_of_swiglu_oai_reach_the_reference_and_the_qualifier() -> None:
    kernel = get_kernel_type("swiglu_oai")
    parameters = kernel.parameters.model_validate({"intermediate_size": 16, "alpha": 1.5, "limit": 5.0})
    assert "ALPHA = 1.5\nLIMIT = 5.0" in kernel.define(parameters).reference
    assert parameters.qualifier() == "alpha1.5_limit5.0"
