"""From the quantisation of a checkpoint to the kernels that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.architecture.quantization import QuantizationFacts, QuantizationScheme

__all__ = [
    "GEMM_KERNELS",
    "MOE_KERNELS",
    "QUANTIZE_KERNELS",
    "is_quantized",
    "is_same_family",
    "override_quantization",
]

_Scheme = QuantizationScheme

GEMM_KERNELS: Mapping[QuantizationScheme, str] = {
    _Scheme.NONE: "gemm",
    _Scheme.FP8_BLOCK: "gemm_fp8_block",
    _Scheme.FP8_TENSOR: "gemm_fp8_tensor",
    _Scheme.FP8_CHANNEL: "gemm_fp8_channel",
    _Scheme.NVFP4: "gemm_nvfp4",
    _Scheme.W4A16: "gemm_w4a16",
}

QUANTIZE_KERNELS: Mapping[QuantizationScheme, str] = {
    _Scheme.FP8_BLOCK: "fp8_quantize_1x128",
    _Scheme.FP8_TENSOR: "fp8_quantize_tensor",
    _Scheme.NVFP4: "nvfp4_quantize",
    _Scheme.MXFP8: "mxfp8_quantize",
}
"""What turns the activations into what the GEMM reads; per-token fp8 has no kernel type."""

MOE_KERNELS: Mapping[QuantizationScheme, str] = {
    _Scheme.NONE: "moe_bf16",
    _Scheme.FP8_BLOCK: "moe_fp8_block_scale",
    _Scheme.FP8_TENSOR: "moe_fp8_tensor",
    _Scheme.NVFP4: "moe_nvfp4",
    _Scheme.MXFP4: "moe_mxfp4",
    _Scheme.W4A16: "moe_w4a16",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Word:
    """What a word of the cookbook means for a checkpoint that is not of its family."""

    family: tuple[QuantizationScheme, ...]
    """The checkpoint may already be any of these."""
    scheme: QuantizationScheme
    expert_scheme: QuantizationScheme | None = None
    group_size: int | None = None


_WORDS: Mapping[str, _Word] = {
    "bf16": _Word(family=(_Scheme.NONE,), scheme=_Scheme.NONE),
    "fp8": _Word(
        # SGLang quantises an unquantised checkpoint on loading: linear weights per output channel, experts per tensor
        # (sglang/srt/layers/quantization/fp8.py, process_weights_after_loading).
        family=(_Scheme.FP8_BLOCK, _Scheme.FP8_TENSOR, _Scheme.FP8_CHANNEL),
        scheme=_Scheme.FP8_CHANNEL,
        expert_scheme=_Scheme.FP8_TENSOR,
    ),
    "nvfp4": _Word(family=(_Scheme.NVFP4,), scheme=_Scheme.NVFP4, group_size=16),
    "fp4": _Word(family=(_Scheme.NVFP4, _Scheme.MXFP4), scheme=_Scheme.NVFP4, group_size=16),
    "mxfp4": _Word(family=(_Scheme.MXFP4,), scheme=_Scheme.NONE, expert_scheme=_Scheme.MXFP4, group_size=32),
    "int4": _Word(family=(_Scheme.W4A16,), scheme=_Scheme.NONE, expert_scheme=_Scheme.W4A16, group_size=32),
}


def override_quantization(checkpoint: QuantizationFacts, point: ServingPoint) -> QuantizationFacts:
    """Put a serving point's quantisation over that of an unquantised checkpoint; a quantised one only if the user asks.

    A cookbook's word cannot undo what the weights are stored in.
    """
    meaning = _WORDS.get(point.quantization or "")
    if meaning is None or is_same_family(checkpoint, point) or (is_quantized(checkpoint) and not point.requested):
        return checkpoint
    if meaning.scheme == _Scheme.NONE and meaning.expert_scheme is None:
        return QuantizationFacts()
    return QuantizationFacts(
        scheme=meaning.scheme,
        expert_scheme=meaning.expert_scheme,
        group_size=meaning.group_size,
        excluded=(*checkpoint.excluded, r".*lm_head.*", r".*embed_tokens.*"),
        witness=checkpoint.witness,
    )


def is_quantized(checkpoint: QuantizationFacts) -> bool:
    """Tell whether any weight is stored in another form than the model's dtype."""
    return bool({checkpoint.scheme, checkpoint.expert_scheme} - {None, _Scheme.NONE})


def is_same_family(checkpoint: QuantizationFacts, point: ServingPoint) -> bool:
    """Tell whether a serving point's word fits the checkpoint; a word that is not known fits all."""
    meaning = _WORDS.get(point.quantization or "")
    if meaning is None:
        return True
    if meaning.family == (_Scheme.NONE,):
        return not is_quantized(checkpoint)
    return bool({checkpoint.scheme, checkpoint.expert_scheme} & set(meaning.family))
