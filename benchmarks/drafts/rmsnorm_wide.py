"""RMSNorm of long rows: a block a row, the row and its weights asked for at once, one sum.

Where rows are a few times the blocks that are at work at once, so that the last ones would leave much idle, the first
blocks have two, and ask for the second before they sum the first.
From Hopper on blocks that find room at once are launched while the kernel before them ends, and wait for that end before
they read; of more blocks those that wait only stand in the way.
"""

import torch
import triton
import triton.language as tl

EPS = 1e-06
BLOCKS = 792
"""Of four warps: twice as many as an H200 has room for at once."""
EARLY_BLOCKS = 528
"""Four on each multiprocessor of an H200."""


@triton.jit
def _scale(raw, weight, o, inside, EPS: tl.constexpr, N: tl.constexpr):
    value = raw.to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value) / N + EPS)
    tl.store(o, (value * factor * weight.to(tl.float32)).to(o.dtype.element_ty), mask=inside)


@triton.jit
def _kernel(x, w, o, EPS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_wait()
    at = tl.arange(0, BLOCK)
    inside = at < N
    row = tl.program_id(0).to(tl.int64) * N + at
    raw = tl.load(x + row, mask=inside, other=0.0)
    weight = tl.load(w + at, mask=inside, other=0.0, eviction_policy="evict_last")
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    _scale(raw, weight, o + row, inside, EPS, N)


@triton.jit
def _pair_kernel(x, w, o, rows, EPS: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    inside = at < N
    later = tl.program_id(0) + tl.num_programs(0)
    row, next_row = tl.program_id(0) * N + at, later * N + at
    weight = tl.load(w + at, mask=inside, other=0.0)
    raw = tl.load(x + row, mask=inside, other=0.0)
    coming = tl.load(x + next_row, mask=inside & (later < rows), other=0.0)
    _scale(raw, weight, o + row, inside, EPS, N)
    if later < rows:
        _scale(coming, weight, o + next_row, inside, EPS, N)


def run(hidden_states, weight, output):
    rows, size = hidden_states.shape
    block = triton.next_power_of_2(size)
    if block > 16384:
        raise ValueError(f"rows of {size} values do not fit a block's registers")
    early = rows <= EARLY_BLOCKS and weight.is_cuda and torch.cuda.get_device_capability(weight.device)[0] >= 9
    options = {"launch_pdl": True} if early else {}
    if BLOCKS < rows <= 2 * BLOCKS:
        warps = max(4, block // 2048)
        _pair_kernel[(BLOCKS,)](
            hidden_states, weight, output, rows, EPS, size, block, num_warps=warps
        )
    else:
        warps = max(4, min(8, block // 512))
        _kernel[(rows,)](hidden_states, weight, output, EPS, size, block, early, num_warps=warps, **options)
