"""RMSNorm of short rows, as over heads: a tile of rows a block, 16 bytes a thread and load.

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
def _kernel(
    x, w, o, rows, EPS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr, EARLY: tl.constexpr
):
    if EARLY:
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, N)[None, :]
    at = row.to(tl.int64) * N + column
    inside = (row < rows) | EVEN
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(w + column).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, axis=1) / N + EPS)[:, None]
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(o + at, (value * factor * weight).to(o.dtype.element_ty), mask=inside)


def run(hidden_states, weight, output):
    rows, size = hidden_states.shape
    if size & (size - 1) or not 8 <= size <= 1024:
        raise ValueError(f"rows of {size} values are not supported")
    # one load a thread is done soonest; a warp that has four and no barrier moves more, once the blocks fill the GPU
    values, warps = (2048, 8) if rows * size <= 1 << 21 else (1024, 1)
    tile = values // size
    blocks = triton.cdiv(rows, tile)
    early = blocks <= EARLY_BLOCKS and weight.is_cuda and torch.cuda.get_device_capability(weight.device)[0] >= 9
    options = {"launch_pdl": True} if early else {}
    _kernel[(blocks,)](
        hidden_states, weight, output, rows, EPS, size, tile, rows % tile == 0, early, num_warps=warps, **options
    )
