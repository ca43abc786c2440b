"""Inputs of fused MoE kernels, by element type as well as name, so that every product has values of about one.

Half of the tokens are pulled to an expert of this device, since a trial that routes nothing here shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fib_tools.model.definition import DType
from fib_tools.op_types.base import InputRule
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.low_bit import E2M1_RMS, INT4_RMS, exponent_bytes, packed_bytes, spread
from fib_tools.op_types.rules import Plain, constant, random

if TYPE_CHECKING:
    import torch

__all__ = ["MOE_INPUT_CODE", "MOE_INPUT_RULES"]

_PULL = 6.0
"""Added to a logit that is normal otherwise."""
_GENEROUS = (0.5, 1.5)
_E4M3_SCALE_RMS = 1.04
"""Root mean square of the scales of packed values, which are even over 0.5 to 1.5."""


def _offset(axes: Mapping[str, int]) -> int:
    """Choose the first local expert: the start of the device in the middle."""
    local, total = axes.get("num_local_experts", 1), axes.get("num_experts", 1)
    return max(total // max(local, 1) - 1, 0) // 2 * local


def _local_offset(request: InputRequest) -> Any:
    offset = _offset(request.axes)
    return offset if request.spec.shape is None else constant(offset)(request)


def _logits(request: InputRequest) -> torch.Tensor:
    import torch

    tokens, experts = request.shape
    values = request.normal(dtype=torch.float32).contiguous()
    local = min(request.axes.get("num_local_experts", 1), experts)
    first = min(_offset(request.axes), experts - local)
    pulled = torch.arange(0, tokens, 2, device=values.device)
    values[pulled, first + pulled % local] += _PULL
    return values.to(request.dtype)


def _chosen(request: InputRequest) -> torch.Tensor:
    """Choose distinct experts for each token, the first of every other one being local."""
    import torch

    total = request.axes.get("num_experts", request.shape[-1])
    local, first = request.axes.get("num_local_experts", total), _offset(request.axes)
    made = torch.stack([torch.randperm(total, generator=request.generator) for _ in range(request.shape[0])])
    for token in range(0, request.shape[0], 2):
        wanted = first + token % local
        made[token] = (made[token] - made[token, 0] + wanted) % total
    return made[:, : request.shape[-1]].to(dtype=request.dtype, device=request.device)


def _fan_in(request: InputRequest, axis: str) -> float:
    return 1 / math.sqrt(request.axes.get(axis, 1))


class _Hidden(Plain):
    """Make packed codes as they come, or plain values."""

    def __call__(self, request: InputRequest) -> torch.Tensor:
        return packed_bytes(request) if request.spec.dtype is DType.INT8 else request.normal()


def _weights(axis: str, request: InputRequest) -> torch.Tensor:
    """Make packed codes as they come, e4m3 of about one (their scales are small), or small plain values."""
    if request.spec.dtype in {DType.INT8, DType.INT32}:
        return packed_bytes(request)
    if request.spec.dtype is DType.FLOAT8_E4M3FN:
        return request.normal()
    return request.normal(_fan_in(request, axis))


def _scaled_spread(request: InputRequest, middle: float) -> Any:
    low, high = _GENEROUS
    return spread(low * middle, high * middle)(request)


def _weights_scale(axis: str, request: InputRequest) -> Any:
    """Make e8m0 bytes, e4m3 scales that others bring into range, bfloat16 ones of integers, or float32 ones of e4m3."""
    if request.spec.dtype is DType.INT8:
        return exponent_bytes(_fan_in(request, axis) / E2M1_RMS)(request)
    if request.spec.dtype is DType.FLOAT8_E4M3FN:
        return _scaled_spread(request, 1.0)
    if request.spec.dtype is DType.BFLOAT16:
        return _scaled_spread(request, _fan_in(request, axis) / INT4_RMS)
    return _scaled_spread(request, _fan_in(request, axis))


def _is_packed(request: InputRequest, name: str) -> bool:
    spec = request.definition.inputs.get(name)
    return spec is not None and spec.dtype is DType.INT8


def _output_scale(axis: str, request: InputRequest) -> Any:
    """Undo the growth of a product of unscaled values, packed ones being larger."""
    operands = ("hidden_states", "gemm1_weights") if axis == "hidden_size" else ("gemm2_weights",)
    size = 1.0
    for name in operands:
        size *= E2M1_RMS * _E4M3_SCALE_RMS if _is_packed(request, name) else 1.0
    return _scaled_spread(request, _fan_in(request, axis) / size)


def _up_scale(request: InputRequest) -> Any:
    """Without a gate this scale comes after the activation, whose input the other one has brought into range."""
    if request.axes.get("gemm1_out_size") == request.axes.get("intermediate_size"):
        return _scaled_spread(request, 1.0)
    return _output_scale("hidden_size", request)


_UP_SCALES = ("output1_scales_scalar", "output1_scale_scalar")
_GATE_SCALES = ("output1_scales_gate_scalar", "output1_scale_gate_scalar")
_DOWN_SCALES = ("output2_scales_scalar", "output2_scale_scalar")

MOE_INPUT_RULES: Mapping[str, InputRule] = {
    "routing_logits": _logits,
    "routing_bias": random(0.1),
    "topk_weights": spread(0.1, 0.3),
    "topk_ids": _chosen,
    "hidden_states": _Hidden(),
    "hidden_states_scale": spread(*_GENEROUS),
    "gemm1_weights": partial(_weights, "hidden_size"),
    "gemm1_weights_scale": partial(_weights_scale, "hidden_size"),
    "gemm1_bias": random(0.5),
    "gemm2_weights": partial(_weights, "intermediate_size"),
    "gemm2_weights_scale": partial(_weights_scale, "intermediate_size"),
    "gemm2_bias": random(0.5),
    **dict.fromkeys(_UP_SCALES, _up_scale),
    **dict.fromkeys(_GATE_SCALES, partial(_output_scale, "hidden_size")),
    **dict.fromkeys(_DOWN_SCALES, partial(_output_scale, "intermediate_size")),
    "local_expert_offset": _local_offset,
    "routed_scaling_factor": constant(2.5),
}

MOE_INPUT_CODE: Mapping[str, str] = {
    "routing_logits": "draw.logits_for_local_experts({shape}, {num_local_experts}, {dtype})",
    "routing_bias": "draw.normal({shape}, {dtype}, scale=0.3)",
    "topk_weights": "draw.uniform({shape}, 0.1, 0.3)",
    "topk_ids": "draw.experts({shape}, {num_experts}, {num_local_experts}, {dtype})",
    "hidden_states": "draw.normal({shape}, {dtype})",
    "hidden_states_scale": "draw.uniform({shape}, 0.5, 1.5, {dtype})",
    "gemm1_weights": "draw.weights({shape}, {dtype}, {hidden_size})",
    "gemm1_weights_scale": "draw.weight_scales({shape}, {dtype}, {hidden_size})",
    "gemm1_bias": "draw.normal({shape}, {dtype}, scale=0.5)",
    "gemm2_weights": "draw.weights({shape}, {dtype}, {intermediate_size})",
    "gemm2_weights_scale": "draw.weight_scales({shape}, {dtype}, {intermediate_size})",
    "gemm2_bias": "draw.normal({shape}, {dtype}, scale=0.5)",
    "local_expert_offset": "draw.local_offset({num_experts}, {num_local_experts})",
    "routed_scaling_factor": "2.5",
}
"""How reference tests make them."""
