"""Fused add and RMSNorm: one block a row, the row in registers, in tiles that are powers of two so that no lane idles.

From Hopper on blocks that find room at once are launched while the kernel before them ends, and wait for that end before
they read; of more blocks those that wait only stand in the way.
"""

import torch
import triton
import triton.language as tl

EPS = 1e-06
EARLY_BLOCKS = 528
"""Four on each multiprocessor of an H200."""


@triton.jit
def _add(x, r, ro, offset, SIZE: tl.constexpr):
    at = offset + tl.arange(0, SIZE)
    total = tl.load(x + at).to(tl.float32) + tl.load(r + at).to(tl.float32)
    tl.store(ro + at, total.to(ro.dtype.element_ty))
    return total, tl.sum(total * total)


@triton.jit
def _scale(value, w, o, factor, offset, SIZE: tl.constexpr):
    at = offset + tl.arange(0, SIZE)
    weight = tl.load(w + at, eviction_policy="evict_last").to(tl.float32)
    tl.store(o + at, (value * factor * weight).to(o.dtype.element_ty))


@triton.jit
def _kernel(
    x, r, w, o, ro,
    EPS: tl.constexpr, N: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64) * N
    first, squares = _add(x + row, r + row, ro + row, 0, A)
    if B > 0:
        second, more = _add(x + row, r + row, ro + row, A, B)
        squares += more
    if C > 0:
        third, more = _add(x + row, r + row, ro + row, A + B, C)
        squares += more
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
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


def run(hidden_states, residual, weight, output, residual_output):
    rows, size = hidden_states.shape
    warps = min(16 if rows <= 264 else 8, max(4, triton.next_power_of_2(size) // 512))
    early = rows <= EARLY_BLOCKS and weight.is_cuda and torch.cuda.get_device_capability(weight.device)[0] >= 9
    options = {"launch_pdl": True} if early else {}
    _kernel[(rows,)](
        hidden_states, residual, weight, output, residual_output, EPS, size, *_split(size), early,
        num_warps=warps, **options,
    )
