from __future__ import annotations

import warnings
from typing import Any

import pytest

from fib_tools.op_types.base import MetaTensor
from fib_tools.op_types.registry import get_kernel_type

SIZES: dict[str, Any] = {
    "num_experts": 256,
    "num_local_experts": 32,
    "hidden_size": 7168,
    "intermediate_size": 2048,
    "top_k": 8,
}
GROUPS = {"routing": "ds", "n_group": 8, "topk_group": 4}
GIVEN: list[tuple[str, dict[str, Any], str]] = [
    ("moe_fp8_block_scale", GROUPS, "moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048"),
    ("moe_fp8_block_scale", {"routing": "default"}, "moe_fp8_block_scale_default_routing_topk8_e32_h7168_i2048"),
    (
        "moe_fp8_block_scale",
        {"routing": "renormalize"},
        "moe_fp8_block_scale_renormalize_routing_topk8_e32_h7168_i2048",
    ),
    (
        "moe_fp8_block_scale",
        {"routing": "renormalize_naive"},
        "moe_fp8_block_scale_renormalize_naive_routing_topk8_e32_h7168_i2048",
    ),
    ("moe_nvfp4", GROUPS, "moe_fp4_block_scale_ds_routing_topk8_e32_h7168_i2048_act3_ng8_kg4"),
    ("moe_nvfp4", {"routing": "renormalize"}, "moe_fp4_block_scale_renormalize_routing_topk8_e32_h7168_i2048_act3"),
    ("moe_bf16", {"routing": "renormalize"}, "trtllm_bf16_moe_topk8_e32_h7168_i2048"),
    ("moe_bf16", {"routing": "sigmoid", "activation": "relu2"}, "trtllm_bf16_moe_topk8_e32_h7168_i2048"),
    ("moe_fp8_tensor", {"routing": "llama4", "top_k": 1}, "trtllm_fp8_per_tensor_scale_moe_topk1_e32_h7168_i2048"),
    ("moe_fp8_tensor", {"routing": "sigmoid_bias"}, "trtllm_fp8_per_tensor_scale_moe_topk8_e32_h7168_i2048"),
    ("moe_w4a16", GROUPS, "trtllm_mxint4_block_scale_moe_topk8_e32_h7168"),
]
LEFT_OUT: list[tuple[str, dict[str, Any]]] = [
    ("moe_fp8_block_scale", {"routing": "sparsemixer", "top_k": 2}),
    ("moe_fp8_block_scale", {"routing": "llama4", "top_k": 1}),
    ("moe_fp8_block_scale", {"routing": "sigmoid_bias"}),
    ("moe_fp8_block_scale", {"routing": "topk"}),
    ("moe_fp8_block_scale", {**GROUPS, "norm_topk_prob": False}),
    ("moe_fp8_block_scale", {**GROUPS, "swiglu_limit": 7.0}),
    ("moe_fp8_block_scale", {**GROUPS, "activation": "relu2"}),
    ("moe_nvfp4", {"routing": "sqrtsoftplus_bias"}),
    ("moe_bf16", {"routing": "softmax_group", "n_group": 8, "topk_group": 3}),
    ("moe_bf16", {"routing": "renormalize", "activation": "gelu"}),
    ("moe_bf16", {"routing": "renormalize", "expert_bias": True}),
    ("moe_w4a16", {**GROUPS, "group_size": 128}),
]


@pytest.fixture(scope="module")
def logging() -> Any:
    """FlashInfer's registry, with its MoE modules imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import flashinfer.fused_moe  # noqa: F401  # registers the templates
        from flashinfer import api_logging
    return api_logging


def _call(kernel_id: str, parameters: dict[str, Any]) -> Any:
    kernel = get_kernel_type(kernel_id)
    assert kernel.template is not None
    return kernel.template(kernel.parameters.model_validate({**SIZES, **parameters}))


def _template(logging: Any, call: Any) -> Any:
    for original, dispatch in logging._TRACE_DISPATCHERS.items():
        if logging._trace_fi_api_for(original) == call.fi_api:
            return dispatch(save_dir=None, name=None, **call.selector)
    return next(item for api, item, _ in logging._TRACE_REGISTRY if logging._trace_fi_api_for(api) == call.fi_api)


def _meta(value: Any) -> Any:
    import torch

    if isinstance(value, MetaTensor):
        return torch.empty(value.shape, dtype=getattr(torch, value.dtype), device="meta")
    return value


@pytest.mark.parametrize(("kernel_id", "parameters", "name"), GIVEN)
def test_a_template_call_gives_our_axes_and_dtypes(
    logging: Any, kernel_id: str, parameters: dict[str, Any], name: str
) -> None:
    import torch

    kernel, call = get_kernel_type(kernel_id), _call(kernel_id, parameters)
    assert call.fi_api == kernel.fi_api
    arguments = {key: _meta(value) for key, value in {**call.arguments, **call.selector}.items()}
    theirs = _template(logging, call).build_fi_trace_fn(call.fi_api)(**arguments)
    ours = kernel.build({**SIZES, **parameters})
    assert theirs["name"] == name
    const = {axis: item["value"] for axis, item in theirs["axes"].items() if item["type"] == "const"}
    settled = {axis: const.pop(axis) for axis in ("top_k", "n_group", "topk_group", "activation_type") if axis in const}
    wanted = {**SIZES, **parameters, "activation_type": 3}
    assert settled == {axis: wanted[axis] for axis in settled}
    assert const == {axis: ours.const_axes[axis] for axis in const}
    assert set(ours.const_axes) - set(const) <= ({"intermediate_size"} if kernel_id == "moe_w4a16" else set())
    lengths: dict[str, int] = {**const}
    for key, spec in theirs["inputs"].items():
        tensor = arguments.get(key)
        if not isinstance(tensor, torch.Tensor):
            assert spec["shape"] is None or spec["optional"], key
            continue
        assert key in ours.inputs
        assert (spec["shape"], spec["dtype"].removeprefix("u")) == (
            ours.inputs[key].shape,
            ours.inputs[key].dtype.value,
        )
        assert len(spec["shape"]) == tensor.dim()
        for axis, length in zip(spec["shape"], tensor.shape, strict=True):
            assert lengths.setdefault(axis, length) == length, (key, axis)
    strays = {key for key, value in arguments.items() if isinstance(value, torch.Tensor)} - set(theirs["inputs"])
    assert strays == set()
    assert {key: spec["shape"] for key, spec in theirs["outputs"].items()} == {"output": ours.outputs["output"].shape}


@pytest.mark.parametrize(("kernel_id", "parameters"), LEFT_OUT)
def test_what_no_template_describes_has_no_call(kernel_id: str, parameters: dict[str, Any]) -> None:
    assert _call(kernel_id, parameters) is None


def test_mxfp4_with_bfloat16_tokens_has_no_template() -> None:
    assert get_kernel_type("moe_mxfp4").template is None


def test_a_plain_selection_has_no_groups() -> None:
    assert _call("moe_bf16", {"routing": "renormalize"}).arguments["n_group"] is None
    assert _call("moe_fp8_block_scale", GROUPS).arguments["n_group"] == 8


def test_the_routing_is_in_the_selector() -> None:
    methods = {"default": 0, "renormalize": 1, "renormalize_naive": 4, "sigmoid_bias": 7, "sigmoid": 6}
    found = {word: _call("moe_bf16", {"routing": word}).selector["routing_method_type"] for word in methods}
    assert found == methods
    assert _call("moe_bf16", {"routing": "sigmoid", "norm_topk_prob": False}).selector["routing_method_type"] == 8
