"""Numbers of 8 and 4 bits: how references decode them, and how packed inputs are made.

Sources: e4m3 as in Micikevicius et al., FP8 Formats for Deep Learning (2022); e2m1 and e8m0 as in the OCP
Microscaling Formats specification 1.0; NVFP4 is e2m1 with an e4m3 scale for 16 values and a float32 scale over all.
Two codes of 4 bits share a byte, the first in the low half. The published schema has no uint8, so bytes are int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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

_BLOCK = 1 << 20
_BYTE_BUDGET = 32 << 20

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


def _tile(request: InputRequest, draw: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Fill the input from a block of drawn values, sharing storage along leading axes where it is large."""
    import torch

    stored = list(request.shape)
    width = request.dtype.itemsize
    for index in range(len(stored) - 1):
        if math.prod(stored) * width <= _BYTE_BUDGET:
            break
        stored[index] = 1
    count = math.prod(stored)
    block = draw(min(count, _BLOCK)).to(request.dtype).view(torch.uint8).view(-1, width)
    values = block.repeat(-(-count // max(len(block), 1)), 1)[:count].reshape(-1).view(request.dtype)
    return values.reshape(stored).to(request.device).expand(request.shape)


def packed_bytes(request: InputRequest) -> torch.Tensor:
    """Make integers whose bits are all random, as packed codes are."""
    import torch

    low, high = torch.iinfo(request.dtype).min, torch.iinfo(request.dtype).max
    return _tile(request, lambda count: torch.randint(low, high + 1, (count,), generator=request.generator))


def spread(low: float, high: float) -> InputRule:
    """Make positive values of [low, high), as scales need, for large tensors as well."""

    def rule(request: InputRequest) -> torch.Tensor:
        import torch

        return _tile(request, lambda count: torch.rand(count, generator=request.generator) * (high - low) + low)

    return rule


def exponent_bytes(middle: float) -> InputRule:
    """Make e8m0 scales within a factor of two of `middle`."""

    def rule(request: InputRequest) -> torch.Tensor:
        import torch

        code = 127 + round(math.log2(middle))
        return _tile(request, lambda count: torch.randint(code - 1, code + 2, (count,), generator=request.generator))

    return rule
