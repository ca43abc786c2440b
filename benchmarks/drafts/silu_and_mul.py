"""SiLU of the gate times up: short blocks over all values, two warps with 16 bytes a thread and load."""

import triton
import triton.language as tl

BLOCK = 512


@triton.jit
def _kernel(x, o, total, N: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // N, at % N
    place = row.to(tl.int64) * (2 * N) + column
    gate = tl.load(x + place, mask=at < total, other=0.0).to(tl.float32)
    up = tl.load(x + place + N, mask=at < total, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(o + at, value.to(o.dtype.element_ty), mask=at < total)


def run(input, output):
    rows, size = output.shape
    total = rows * size
    if total > (1 << 31) - BLOCK:
        raise ValueError(f"{total} values are more than 32 bits can count")
    _kernel[(triton.cdiv(total, BLOCK),)](input, output, total, size, BLOCK, num_warps=2)
