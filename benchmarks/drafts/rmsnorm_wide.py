"""RMSNorm of long rows: one block a row, the row in registers, in tiles that are powers of two so that no lane idles."""

import triton
import triton.language as tl

EPS = 1e-06


@triton.jit
def _read(x, offset, SIZE: tl.constexpr):
    value = tl.load(x + offset + tl.arange(0, SIZE)).to(tl.float32)
    return value, tl.sum(value * value)


@triton.jit
def _scale(value, w, o, factor, offset, SIZE: tl.constexpr):
    at = offset + tl.arange(0, SIZE)
    weight = tl.load(w + at, eviction_policy="evict_last").to(tl.float32)
    tl.store(o + at, (value * factor * weight).to(o.dtype.element_ty))


@triton.jit
def _kernel(x, w, o, EPS: tl.constexpr, N: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * N
    first, squares = _read(x + row, 0, A)
    if B > 0:
        second, more = _read(x + row, A, B)
        squares += more
    if C > 0:
        third, more = _read(x + row, A + B, C)
        squares += more
    factor = tl.rsqrt(squares / N + EPS)
    _scale(first, w, o + row, factor, 0, A)
    if B > 0:
        _scale(second, w, o + row, factor, A, B)
    if C > 0:
        _scale(third, w, o + row, factor, A + B, C)


def _split(size):
    """Write a length as at most three powers of two, the largest first."""
    parts = [1 << bit for bit in range(size.bit_length() - 1, -1, -1) if size >> bit & 1]
    if len(parts) > 3:
        raise ValueError(f"{size} is no sum of three powers of two")
    return (*parts, 0, 0)[:3]


def run(hidden_states, weight, output):
    rows, size = hidden_states.shape
    warps = min(16 if rows <= 264 else 8, max(4, triton.next_power_of_2(size) // 512))
    _kernel[(rows,)](hidden_states, weight, output, EPS, size, *_split(size), num_warps=warps)
