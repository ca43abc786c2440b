"""FlashInfer's trace templates, instantiated on meta tensors in a sandbox child.

FlashInfer is a trusted dependency; it runs in the child because its import takes seconds and writes cache files.
A result is not to be trusted before `strict.find_shape_faults` has looked at it: templates never check shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from fib_tools.host.sandbox import Limits, Sandbox
from fib_tools.op_types.base import MetaTensor, TemplateCall
from fib_tools.sources.flashinfer import load_traced_apis

__all__ = ["TemplateResult", "enumerate_templates", "instantiate"]

_LIMITS = Limits(wall_seconds=120, memory_bytes=16 << 30, processes=32)
"""Address space, not memory: torch and FlashInfer map libraries of several GB and touch little of them."""
_CHILD = "fib_tools.gate._template_child"

_SIZES: Mapping[str, int] = {
    "head_dim": 128,
    "head_dim_qk": 576,
    "kv_pad_dim": 1,
    "head_dim_half": 64,
    "head_dim_vo": 128,
    "head_dim_ckv": 512,
    "head_dim_kpe": 64,
    "hidden_size": 256,
    "intermediate_size": 256,
    "gemm1_out_size": 512,
    "page_size": 16,
    "num_qo_heads": 8,
    "num_kv_heads": 2,
    "num_experts": 16,
    "num_local_experts": 16,
    "top_k": 4,
    "vocab_size": 128,
    "kv_planes": 2,
    "n_group": 4,
    "topk_group": 2,
    "num_fused_shared_experts": 1,
    "activation_type": 3,
    "M": 128,
    "N": 256,
    "K": 256,
    "block_size": 16,
    "block_k": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "batch_size": 3,
    "len_indptr": 4,
    "len_qo_indptr": 4,
    "batch_size_plus_1": 4,
}
"""Lengths for templates without an `init` of their own: small, and in the relations that the names promise."""


_SCALES_1D = {"b_descale": "float8_e4m3fn"}
_PACKED_MOE = {"x": "uint8", "x_sf": "float8_e4m3fn", "w1_weight_sf": "float8_e4m3fn", "w2_weight_sf": "float8_e4m3fn"}

_MADE_UP: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "mm_bf16_fp4_cute_dsl_native_sf1d": {"sizes": {"SF_dim_0": 4096}, "dtypes": _SCALES_1D},
    "mm_bf16_fp4_cute_dsl_native_sf2d": {"sizes": {"SF_dim_0": 256, "SF_dim_1": 16}, "dtypes": _SCALES_1D},
    "mm_bf16_fp4_cute_dsl": {"dtypes": {"B": "int32", "b_descale": "uint8"}},
    "mm_bf16_fp4_cute_dsl_sm100": {"sizes": {"num_groups": 1}, "dtypes": {"B": "uint8", "b_descale": "uint8"}},
    "gemm_mxfp8": {"dtypes": {"a_descale": "uint8", "b_descale": "uint8"}},
    "bmm_mxfp8": {"dtypes": {"a_descale": "uint8", "b_descale": "uint8", "A_scale": "uint8", "B_scale": "uint8"}},
    "cute_dsl_fused_moe": {"dtypes": _PACKED_MOE},
    "cute_dsl_moe_wrapper": {"dtypes": _PACKED_MOE},
}
"""By a template's name: lengths and types of a made-up call that its axis names do not tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateResult:
    """What a template said of a call, and what it looked at."""

    fi_api: str
    fi_name: str | None = None
    """The name FlashInfer's trace_apply routes by."""
    raw: dict[str, Any] | None = None
    """The dump, untouched; None when there is no template or it failed."""
    bindings: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    """For each tensor input the shape of the call's tensor it was read from; None when the call had none there."""
    strays: tuple[str, ...] = ()
    """Tensor arguments that no input reads."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The call's plain arguments, by parameter name."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """For each input the API parameter it stands for."""
    reason: str | None = None
    """Why there is no raw dump."""


def instantiate(calls: Sequence[TemplateCall], *, sandbox: Sandbox | None = None) -> list[TemplateResult]:
    """Instantiate the template of each call, in order; pass a sandbox to share its warm process.

    Raises:
        ChildError: the child could not import FlashInfer or did not come to an end.
    """
    if not calls:
        return []
    payload = {"calls": [_encode_call(call) for call in calls]}
    return [_result(item) for item in _run("instantiate", payload, sandbox)["results"]]


def enumerate_templates(*, sandbox: Sandbox | None = None) -> list[TemplateResult]:
    """Instantiate every template of the installed FlashInfer with made-up arguments; modules that fail are named."""
    modules = sorted({api.module for api in load_traced_apis().apis})
    answer = _run("enumerate_all", {"modules": modules, "sizes": dict(_SIZES), "made_up": _MADE_UP}, sandbox)
    failed = [TemplateResult(fi_api=name, reason=reason) for name, reason in answer["failed"].items()]
    return [*(_result(item) for item in answer["results"]), *failed]


def _run(function: str, payload: dict[str, Any], sandbox: Sandbox | None) -> dict[str, Any]:
    with nullcontext(sandbox) if sandbox else Sandbox(("torch",), limits=_LIMITS) as child:
        return child.run(f"{_CHILD}:{function}", payload, limits=_LIMITS)


def _encode_call(call: TemplateCall) -> dict[str, Any]:
    return {
        "fi_api": call.fi_api,
        "arguments": {name: _encode(value) for name, value in call.arguments.items()},
        "selector": {name: _encode(value) for name, value in call.selector.items()},
    }


def _encode(value: Any) -> Any:
    if isinstance(value, MetaTensor):
        return {"tensor": list(value.shape), "dtype": value.dtype}
    if isinstance(value, (tuple, list)):
        return {"tuple": [_encode(item) for item in value]}
    return {"value": value}


def _result(item: dict[str, Any]) -> TemplateResult:
    bindings = {name: tuple(shape) if shape is not None else None for name, shape in item.pop("bindings", {}).items()}
    strays = tuple(item.pop("strays", ()))
    return TemplateResult(bindings=bindings, strays=strays, **item)
