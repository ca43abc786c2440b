from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.moe_parameters import (
    MoeParameters,
    MoeW4a16Parameters,
    RoutingParameters,
    ScaledMoeParameters,
)
from fib_tools.op_types.registry import get_kernel_type

SIZES: dict[str, Any] = {"num_experts": 256, "num_local_experts": 32, "hidden_size": 7168, "intermediate_size": 2048}
V3: dict[str, Any] = {**SIZES, "routing": "ds", "top_k": 8, "n_group": 8, "topk_group": 4}
KIMI: dict[str, Any] = {**SIZES, "num_experts": 384, "num_local_experts": 48, "routing": "ds", "top_k": 8}
GPT_OSS: dict[str, Any] = {
    "num_experts": 128,
    "num_local_experts": 128,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "routing": "renormalize",
    "top_k": 4,
    "activation": "swiglu_oai",
    "expert_bias": True,
}


@pytest.mark.parametrize(
    ("kernel", "parameters", "name"),
    [
        ("moe_fp8_block_scale", V3, "moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048"),
        ("moe_fp8_block_scale", KIMI, "moe_fp8_block_scale_ds_routing_topk8_ng1_kg1_e48_h7168_i2048"),
        (
            "moe_fp8_block_scale",
            {**SIZES, "routing": "renormalize", "top_k": 8},
            "moe_fp8_block_scale_renorm_topk8_e32_h7168_i2048",
        ),
        (
            "moe_fp8_block_scale",
            {**SIZES, "routing": "sigmoid_bias", "top_k": 8},
            "moe_fp8_block_scale_sigmoid_bias_topk8_e32_h7168_i2048",
        ),
        ("moe_mxfp4", GPT_OSS, "moe_mxfp4_renorm_topk4_e128_h2880_i2880_swiglu_oai_bias"),
        (
            "moe_mxfp4",
            {**GPT_OSS, "swiglu_limit": 7.0},
            "moe_mxfp4_renorm_topk4_e128_h2880_i2880_swiglu_oai_bias",
        ),
        (
            "moe_bf16",
            {**SIZES, "routing": "softmax_group", "top_k": 6, "n_group": 8, "topk_group": 3, "norm_topk_prob": False},
            "moe_bf16_softmax_group_nonorm_topk6_ng8_kg3_e32_h7168_i2048",
        ),
        (
            "moe_nvfp4",
            {**SIZES, "routing": "sigmoid", "top_k": 8, "activation": "relu2"},
            "moe_nvfp4_sigmoid_topk8_e32_h7168_i2048_relu2",
        ),
        (
            "moe_fp8_tensor",
            {**SIZES, "routing": "llama4", "top_k": 1},
            "moe_fp8_per_tensor_llama4_topk1_e32_h7168_i2048",
        ),
        (
            "moe_bf16",
            {**SIZES, "routing": "sqrtsoftplus_bias", "top_k": 6, "swiglu_limit": 10.0},
            "moe_bf16_sqrtsoftplus_bias_topk6_e32_h7168_i2048_limit10",
        ),
        ("moe_w4a16", KIMI, "moe_w4a16_ds_routing_topk8_ng1_kg1_e48_h7168_i2048"),
        (
            "moe_routing",
            {"num_experts": 256, "routing": "ds", "top_k": 8, "n_group": 8, "topk_group": 4},
            "moe_routing_ds_topk8_ng8_kg4_e256",
        ),
        (
            "moe_routing",
            {"num_experts": 128, "routing": "renormalize", "top_k": 8},
            "moe_routing_renormalize_topk8_e128",
        ),
    ],
)
def test_names_are_canonical(kernel: str, parameters: dict[str, Any], name: str) -> None:
    assert get_kernel_type(kernel).build(parameters).name == name


@pytest.mark.parametrize(
    ("total", "local", "qualifier"), [(256, 32, ""), (256, 256, ""), (256, 16, "of256"), (160, 32, "of160")]
)
def test_the_number_of_all_experts_is_told_apart_where_the_name_does_not_say_it(
    total: int, local: int, qualifier: str
) -> None:
    parameters = MoeParameters(**{**V3, "num_experts": total, "num_local_experts": local})
    assert parameters.qualifier() == qualifier


def test_a_routing_kernel_cannot_be_given_its_choice() -> None:
    with pytest.raises(ValidationError, match="chooses nothing"):
        get_kernel_type("moe_routing").build({"num_experts": 8, "top_k": 2, "routing": "given"})


def test_another_group_size_has_a_qualifier() -> None:
    assert MoeW4a16Parameters(**KIMI).qualifier() == ""
    assert MoeW4a16Parameters(**KIMI, group_size=128).qualifier() == "groupsize128"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"top_k": 300, "routing": "default"}, "top_k 300 of 256 experts"),
        ({"n_group": 7}, "256 experts in 7 groups"),
        ({"topk_group": 9}, "of which 9 are kept"),
        ({"n_group": 64, "topk_group": 1}, "top_k 8 of 1 groups of 4"),
        ({"routing": "sigmoid"}, "knows no groups"),
        ({"routing": "sparsemixer", "n_group": None, "topk_group": None}, "takes top_k 2"),
        ({"routing": "renormalize", "n_group": 1, "topk_group": 1, "norm_topk_prob": False}, "is `default`"),
        ({"num_local_experts": 257}, "257 local experts of 256"),
        ({"activation": "relu2", "swiglu_limit": 7.0}, "relu2 does not clamp"),
        ({"routing": "unheard_of"}, "Input should be"),
        ({"routing": "given"}, "knows no groups"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        MoeParameters(**{**V3, **change})


@pytest.mark.parametrize("change", [{"expert_bias": True}, {"swiglu_limit": 7.0}, {"activation": "swiglu_oai"}])
def test_output_scales_take_neither_bias_nor_clamp(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="output scales"):
        ScaledMoeParameters(**{**V3, **change})


def test_groups_of_one_are_no_groups() -> None:
    parameters = RoutingParameters(num_experts=8, top_k=2, routing="sigmoid", n_group=1, topk_group=1)
    assert parameters.routing_pieces("sigmoid") == ("sigmoid", "", ("topk", 2))
