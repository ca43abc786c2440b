from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.registry import get_kernel_type

HIDDEN = 96


@pytest.mark.parametrize("kernel", ["rmsnorm", "gemma_rmsnorm", "fused_add_rmsnorm", "gemma_fused_add_rmsnorm"])
def test_a_norm_conforms_under_its_canonical_name(kernel: str, check_conformance: Callable[..., None]) -> None:
    check_conformance(kernel, f"{kernel}_h7168", hidden_size=7168, eps=1e-5)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"hidden_size": 128}, "rmsnorm_gated_h128"),
        ({"hidden_size": 128, "activation": "sigmoid"}, "rmsnorm_gated_sigmoid_h128"),
        ({"hidden_size": 512, "group_size": 128}, "rmsnorm_gated_h512_g128"),
        (
            {"hidden_size": 512, "group_size": 128, "norm_before_gate": False},
            "rmsnorm_gated_gate_first_h512_g128",
        ),
    ],
)
def test_a_gated_norm_has_everything_that_changes_it_in_its_name(
    parameters: dict[str, Any], name: str, check_conformance: Callable[..., None]
) -> None:
    check_conformance("rmsnorm_gated", name, **parameters)


def test_a_norm_without_weight_conforms(check_conformance: Callable[..., None]) -> None:
    check_conformance("rmsnorm_noweight", "rmsnorm_noweight_h128", hidden_size=128)


def test_the_plain_norm_is_that_of_llama(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    trial = try_kernel("rmsnorm", hidden_size=HIDDEN, eps=1e-5, dtype="float32")
    norm = LlamaRMSNorm(HIDDEN, eps=1e-5)
    norm.weight.data = trial.inputs["weight"]
    torch.testing.assert_close(trial.outputs["output"], norm(trial.inputs["hidden_states"]).detach())


def test_the_gemma_norm_is_that_of_gemma(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

    trial = try_kernel("gemma_rmsnorm", hidden_size=HIDDEN, dtype="float32")
    norm = Gemma2RMSNorm(HIDDEN)
    norm.weight.data = trial.inputs["weight"]
    torch.testing.assert_close(trial.outputs["output"], norm(trial.inputs["hidden_states"]).detach())


def test_the_norm_without_weight_is_that_of_llama4_queries(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm

    trial = try_kernel("rmsnorm_noweight", hidden_size=HIDDEN, dtype="float32")
    torch.testing.assert_close(trial.outputs["output"], Llama4TextL2Norm(eps=1e-6)(trial.inputs["hidden_states"]))


def test_the_gated_norm_is_that_of_the_gated_delta_net(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

    trial = try_kernel("rmsnorm_gated", hidden_size=HIDDEN, dtype="float32")
    norm = Qwen3NextRMSNormGated(HIDDEN)
    norm.weight.data = trial.inputs["weight"]
    expected = norm(trial.inputs["hidden_states"], trial.inputs["gate"]).detach()
    torch.testing.assert_close(trial.outputs["output"], expected)


def test_the_sigmoid_gated_norm_is_that_of_kimi_linear(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearRMSNormGated

    trial = try_kernel("rmsnorm_gated", hidden_size=HIDDEN, activation="sigmoid", dtype="float32")
    norm = KimiLinearRMSNormGated(HIDDEN)
    norm.weight.data = trial.inputs["weight"]
    expected = norm(trial.inputs["hidden_states"], trial.inputs["gate"]).detach()
    torch.testing.assert_close(trial.outputs["output"], expected)


def test_the_gate_first_grouped_norm_is_that_of_mamba2_in_nemotron(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHRMSNormGated

    trial = try_kernel("rmsnorm_gated", hidden_size=HIDDEN, group_size=32, norm_before_gate=False, dtype="float32")
    norm = NemotronHRMSNormGated(HIDDEN, group_size=32)
    norm.weight.data = trial.inputs["weight"]
    expected = norm(trial.inputs["hidden_states"], trial.inputs["gate"]).detach()
    torch.testing.assert_close(trial.outputs["output"], expected)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_fused_norm_is_within_one_rounding_of_float64(
    offset: float, try_kernel: Callable[..., Any], ulps: Callable[..., float]
) -> None:
    trial = try_kernel("gemma_fused_add_rmsnorm" if offset else "fused_add_rmsnorm", hidden_size=HIDDEN)
    x, residual, weight = (value.double() for value in trial.inputs.values())
    total = x + residual
    exact = total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (weight + offset)
    assert ulps(trial.outputs["output"], exact) < 0.51
    assert ulps(trial.outputs["residual_output"], total) < 0.51


def test_the_constant_of_the_model_reaches_the_reference(try_kernel: Callable[..., Any]) -> None:
    small = try_kernel("rmsnorm", hidden_size=HIDDEN, eps=1e-6).outputs["output"]
    large = try_kernel("rmsnorm", hidden_size=HIDDEN, eps=1.0).outputs["output"]
    assert not small.equal(large)


def test_eps_is_left_out_of_the_name_and_kept_in_the_qualifier() -> None:
    kernel = get_kernel_type("rmsnorm")
    plain, llama = (kernel.parameters.model_validate({"hidden_size": 64, "eps": eps}) for eps in (1e-6, 1e-5))
    assert (plain.qualifier(), llama.qualifier()) == ("", "eps1e-05")
    assert plain.plain_qualifier() == "eps1e-06"
    assert kernel.define(plain).name == kernel.define(llama).name


def test_groups_that_do_not_divide_the_row_are_refused() -> None:
    with pytest.raises(ValidationError, match="group_size 7 does not divide hidden_size 64"):
        get_kernel_type("rmsnorm_gated").build({"hidden_size": 64, "group_size": 7})
