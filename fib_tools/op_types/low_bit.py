"""Numbers of 8 and 4 bits: how references decode them, and how packed inputs are made.

Sources: e4m3 as in Micikevicius et al., FP8 Formats for Deep Learning (2022); e2m1 and e8m0 as in the OCP
Microscaling Formats specification 1.0; NVFP4 is e2m1 with an e4m3 scale for 16 values and a float32 scale over all.
Two codes of 4 bits share a byte, the first in the low half. The published schema has no uint8, so bytes are int8.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fib_tools.op_types.base import InputRule
from fib_tools.op_types.input_request import InputRequest

if TYPE_CHECKING:
    import torch

__all__ = [
    "DECODE_E2M1",
    "DECODE_E4M3",
    "E2M1_RMS",
    "INT4_RMS",
    "count_blocks",
    "exponent_bytes",
    "packed_bytes",
    "spread",
]

E2M1_RMS = 2.93
"""Root mean square of the 16 values of e2m1."""
INT4_RMS = 4.64
"""Root mean square of the integers -8 to 7."""

DECODE_E4M3 = """
    def decode_e4m3(x):
        # The bits of an e4m3, moved into a float16, are the value / 256, exactly; on a CPU .to(float32) is far slower.
        bits = x.view(torch.int8).to(torch.int16) << 7 & -0x4001
        return bits.view(torch.float16).to(torch.float32) * 256
"""
"""The sign is extended by the widening to int16, so that after the shift it stands in bit 15 and, to clear, in 14."""

DECODE_E2M1 = """
    def decode_e2m1(codes):
        # 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives: the bits of an e2m1, moved into a float16, are the value / 2^14.
        bits = (codes & 7) << 9 | (codes & 8) << 12
        return bits.view(torch.float16).to(torch.float32) * 16384
"""
"""Takes int16 codes of 0 to 15."""


def count_blocks(length: int, block: int) -> int:
    """Tell how many scales a length needs; the last block may be short."""
    return -(-length // block)


def packed_bytes(request: InputRequest) -> torch.Tensor:
    """Make integers whose bits are all random, as packed codes are."""
    import torch

    bounds = torch.iinfo(request.dtype)
    return request.codes(bounds.min, bounds.max + 1)


def spread(low: float, high: float) -> InputRule:
    """Make positive values of [low, high), as scales need."""
    return lambda request: request.uniform(low, high)


def exponent_bytes(middle: float) -> InputRule:
    """Make e8m0 scales within a factor of two of `middle`."""
    code = 127 + round(math.log2(middle))
    return lambda request: request.codes(code - 1, code + 2)
