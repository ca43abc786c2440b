"""The template calls of FlashInfer's trtllm MoE APIs.

A call is given where the template's axes are right and the API computes this kernel. The templates of the bf16, int4
and per-tensor APIs do not depend on the routing, and their references are of default routing only.
"""

from __future__ import annotations

from collections.abc import Mapping

from fib_tools.op_types.base import MetaTensor, TemplateCall
from fib_tools.op_types.low_bit import count_blocks
from fib_tools.op_types.moe_parameters import MoeParameters, MoeW4a16Parameters

__all__ = [
    "BF16_API",
    "BLOCK_API",
    "FP4_API",
    "INT4_API",
    "TENSOR_API",
    "bf16_template",
    "block_template",
    "has_routing_method",
    "int4_template",
    "nvfp4_template",
    "tensor_template",
]

_CORE = "flashinfer.fused_moe.core"
BF16_API = f"{_CORE}.trtllm_bf16_moe"
BLOCK_API = f"{_CORE}.trtllm_fp8_block_scale_moe"
FP4_API = f"{_CORE}.trtllm_fp4_block_scale_moe"
INT4_API = f"{_CORE}.trtllm_mxint4_block_scale_moe"
TENSOR_API = f"{_CORE}.trtllm_fp8_per_tensor_scale_moe"

_FP8 = "float8_e4m3fn"
_ROWS = 4

_METHODS: Mapping[str, int] = {"default": 0, "renormalize": 1, "ds": 2, "llama4": 3, "renormalize_naive": 4}
"""`RoutingMethodType`, where it has one meaning; that of TopK differs between FlashInfer's reference and its name."""
_ACTIVATIONS: Mapping[str, int] = {"swiglu": 3, "relu2": 6}
"""`ActivationType`, where the API needs no arguments beside it."""


def _method(parameters: MoeParameters) -> int | None:
    """Find FlashInfer's number for the routing."""
    if parameters.routing == "sigmoid_bias" and parameters.norm_topk_prob:
        return 7
    if parameters.routing == "sigmoid":
        return 6 if parameters.norm_topk_prob else 8
    if parameters.routing == "ds" and not parameters.norm_topk_prob:
        return None
    return _METHODS.get(parameters.routing)


def has_routing_method(parameters: MoeParameters) -> bool:
    """Tell whether FlashInfer's kernels choose experts this way."""
    return _method(parameters) is not None


def _is_plain(parameters: MoeParameters) -> bool:
    """Tell whether the API can be told everything by routing and activation type."""
    return parameters.activation in _ACTIVATIONS and parameters.swiglu_limit is None and not parameters.expert_bias


def _call(
    fi_api: str, parameters: MoeParameters, tensors: Mapping[str, MetaTensor], *, routings: tuple[int, ...]
) -> TemplateCall | None:
    method = _method(parameters)
    if method not in routings or not _is_plain(parameters):
        return None
    experts = parameters.num_experts
    groups = parameters.groups if parameters.is_grouped else (None, None)
    bias = {"routing_bias": MetaTensor(shape=(experts,))} if parameters.has_bias else {}
    return TemplateCall(
        fi_api=fi_api,
        arguments={
            "routing_logits": MetaTensor(shape=(_ROWS, experts), dtype="float32"),
            **bias,
            **tensors,
            "num_experts": experts,
            "top_k": parameters.top_k,
            "n_group": groups[0],
            "topk_group": groups[1],
            "intermediate_size": parameters.intermediate_size,
            "local_expert_offset": 0,
            "local_num_experts": parameters.num_local_experts,
            "routed_scaling_factor": parameters.routed_scaling_factor or 1.0,
        },
        selector={"routing_method_type": method, "activation_type": _ACTIVATIONS[parameters.activation]},
    )


def _operands(parameters: MoeParameters, dtype: str, *, pack: int = 1) -> dict[str, MetaTensor]:
    """Describe activations and weights of one element type, `pack` values to an element."""
    experts, hidden, inner = parameters.num_local_experts, parameters.hidden_size, parameters.intermediate_size
    return {
        "hidden_states": MetaTensor(shape=(_ROWS, hidden // pack), dtype=dtype),
        "gemm1_weights": MetaTensor(shape=(experts, parameters.gemm1_out_size, hidden // pack), dtype=dtype),
        "gemm2_weights": MetaTensor(shape=(experts, hidden, inner // pack), dtype=dtype),
    }


def _output_scales(parameters: MoeParameters, *names: str) -> dict[str, MetaTensor]:
    return dict.fromkeys(names, MetaTensor(shape=(parameters.num_local_experts,), dtype="float32"))


_WITH_TEMPLATE = (0, 1, 2, 4)
"""Dispatched by routing; Llama 4's is left out, since these APIs weight the output and the model the input."""
_ANY = (0, 1, 2, 4, 6, 7, 8)


def block_template(parameters: MoeParameters) -> TemplateCall | None:
    """Call with e4m3 of 1x128 and 128x128 blocks; the API's inner product is always gated."""
    if not parameters.is_gated:
        return None
    experts = parameters.num_local_experts
    hidden, inner = count_blocks(parameters.hidden_size, 128), count_blocks(parameters.intermediate_size, 128)
    out = count_blocks(parameters.gemm1_out_size, 128)
    tensors = {
        **_operands(parameters, _FP8),
        "hidden_states_scale": MetaTensor(shape=(hidden, _ROWS), dtype="float32"),
        "gemm1_weights_scale": MetaTensor(shape=(experts, out, hidden), dtype="float32"),
        "gemm2_weights_scale": MetaTensor(shape=(experts, hidden, inner), dtype="float32"),
    }
    return _call(BLOCK_API, parameters, tensors, routings=_WITH_TEMPLATE)


def nvfp4_template(parameters: MoeParameters) -> TemplateCall | None:
    """Call with packed activations; for bfloat16 ones the template would take hidden_size for the packed size."""
    experts, hidden = parameters.num_local_experts, count_blocks(parameters.hidden_size, 16)
    inner = count_blocks(parameters.intermediate_size, 16)
    names = ("output1_scale_scalar", "output1_scale_gate_scalar", "output2_scale_scalar")
    tensors = {
        **_operands(parameters, "uint8", pack=2),
        "hidden_states_scale": MetaTensor(shape=(_ROWS, hidden), dtype=_FP8),
        "gemm1_weights_scale": MetaTensor(shape=(experts, parameters.gemm1_out_size, hidden), dtype=_FP8),
        "gemm2_weights_scale": MetaTensor(shape=(experts, parameters.hidden_size, inner), dtype=_FP8),
        **_output_scales(parameters, *names),
    }
    return _call(FP4_API, parameters, tensors, routings=_WITH_TEMPLATE)


def tensor_template(parameters: MoeParameters) -> TemplateCall | None:
    """Call with one scale for each product; the API can weight the input, as Llama 4 does."""
    names = ("output1_scales_scalar", "output1_scales_gate_scalar", "output2_scales_scalar")
    tensors = {**_operands(parameters, _FP8), **_output_scales(parameters, *names)}
    return _call(TENSOR_API, parameters, tensors, routings=(*_ANY, 3))


def bf16_template(parameters: MoeParameters) -> TemplateCall | None:
    """Call with plain weights, as the template has them; the API itself takes them in blocks of K."""
    return _call(BF16_API, parameters, _operands(parameters, "bfloat16"), routings=_ANY)


def int4_template(parameters: MoeW4a16Parameters) -> TemplateCall | None:
    """Call with 4-bit integers in the groups of 32 that the API knows; it has no activation but SwiGLU."""
    if parameters.group_size != 32 or not parameters.is_gated:
        return None
    experts, hidden = parameters.num_local_experts, count_blocks(parameters.hidden_size, 32)
    inner = count_blocks(parameters.intermediate_size, 32)
    tensors = {
        **_operands(parameters, "uint8", pack=2),
        "hidden_states": MetaTensor(shape=(_ROWS, parameters.hidden_size)),
        "gemm1_weights_scale": MetaTensor(shape=(experts, parameters.gemm1_out_size, hidden)),
        "gemm2_weights_scale": MetaTensor(shape=(experts, parameters.hidden_size, inner)),
    }
    return _call(INT4_API, parameters, tensors, routings=_ANY)
