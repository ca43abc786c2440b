"""Quantising to GGML's types: the K types here, for which the `gguf` package has a dequantiser only.

The layouts are those of `block_q4_K` and `block_q6_K` in ggml-common.h: 256 values in 144 and 210 bytes.
The scales are the simplest that fit, so the error is a little larger than llama.cpp's.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def quantize(values: Any, kind: str) -> Any:
    """Quantise the rows of an array; bytes for block types."""
    import gguf

    own = {"Q4_K": _quantize_q4_k, "Q6_K": _quantize_q6_k}
    if kind in own:
        blocks = values.astype(np.float32).reshape(-1, 256)
        packed = own[kind](blocks)
        return packed.reshape(*values.shape[:-1], values.shape[-1] // 256 * packed.shape[1])
    return gguf.quantize(values, gguf.GGMLQuantizationType[kind])


def _quantize_q4_k(blocks: Any) -> Any:
    """Eight parts of 32: value = d * scale * q - dmin * minimum, q of 4 bits, scale and minimum of 6."""
    parts = blocks.reshape(-1, 8, 32)
    lowest = np.minimum(parts.min(axis=2), 0)
    step = (parts.max(axis=2) - lowest) / 15
    d, scale = _to_six_bits(step)
    dmin, minimum = _to_six_bits(-lowest)
    step, lowest = d[:, None] * scale, -dmin[:, None] * minimum
    q = np.rint((parts - lowest[..., None]) / np.where(step == 0, 1, step)[..., None]).clip(0, 15).astype(np.uint8)
    pairs = q.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return np.hstack([_halves(d), _halves(dmin), _pack_six_bits(scale, minimum), nibbles])


def _to_six_bits(values: Any) -> tuple[Any, Any]:
    """Write [blocks, 8] as a half-precision factor for each block times integers up to 63."""
    factor = (values.max(axis=1) / 63).astype(np.float16).astype(np.float32)
    return factor, np.rint(values / np.where(factor == 0, 1, factor)[:, None]).clip(0, 63).astype(np.uint8)


def _pack_six_bits(scale: Any, minimum: Any) -> Any:
    """Put eight scales and eight minima of 6 bits into 12 bytes: the last four of each are split."""
    low_scale = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    low_minimum = minimum[:, :4] | (minimum[:, 4:] >> 4) << 6
    return np.hstack([low_scale, low_minimum, (scale[:, 4:] & 15) | (minimum[:, 4:] & 15) << 4])


def _quantize_q6_k(blocks: Any) -> Any:
    """Sixteen parts of 16: value = d * scale * (q - 32), q of 6 bits, scale a signed byte."""
    parts = blocks.reshape(-1, 16, 16)
    step = np.abs(parts).max(axis=2) / 31
    d = (step.max(axis=1) / 127).astype(np.float16).astype(np.float32)
    scale = np.rint(step / np.where(d == 0, 1, d)[:, None]).clip(0, 127).astype(np.int8)
    width = d[:, None] * scale
    q = np.rint(parts / np.where(width == 0, 1, width)[..., None]).clip(-32, 31).astype(np.int8) + 32
    quarters = q.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate(
        [
            quarters[:, :, 0] & 15 | (quarters[:, :, 2] & 15) << 4,
            quarters[:, :, 1] & 15 | (quarters[:, :, 3] & 15) << 4,
        ],
        axis=2,
    )
    high = sum((quarters[:, :, index] >> 4) << 2 * index for index in range(4))
    return np.hstack([low.reshape(-1, 128), high.reshape(-1, 64), scale.view(np.uint8), _halves(d)])


def _halves(values: Any) -> Any:
    return values.astype(np.float16)[:, None].view(np.uint8)
