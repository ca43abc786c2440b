"""Merging two attention states: a tile of rows (query and head) a block, 16 bytes a thread and load.

From Hopper on blocks that find room at once are launched while the kernel before them ends, and wait for that end before
they read; of more blocks those that wait only stand in the way.
"""

import torch
import triton
import triton.language as tl

EARLY_BLOCKS = 528
"""Four on each multiprocessor of an H200."""


@triton.jit
def _kernel(
    va, sa, vb, sb, vm, sm, rows, D: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr, EARLY: tl.constexpr
):
    if EARLY:
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows) | EVEN
    at = row.to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
    first = tl.load(va + at, mask=inside[:, None], other=0.0).to(tl.float32)
    second = tl.load(vb + at, mask=inside[:, None], other=0.0).to(tl.float32)
    a = tl.load(sa + row, mask=inside, other=0.0)
    b = tl.load(sb + row, mask=inside, other=0.0)
    top = tl.maximum(a, b)
    top = tl.where(top == float("-inf"), 0.0, top)
    weight_a, weight_b = tl.exp2(a - top), tl.exp2(b - top)
    total = weight_a + weight_b
    share = 1.0 / tl.where(total > 0, total, 1.0)
    merged = first * (weight_a * share)[:, None] + second * (weight_b * share)[:, None]
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(vm + at, merged.to(vm.dtype.element_ty), mask=inside[:, None])
    tl.store(sm + row, tl.log2(total) + top, mask=inside)


def run(v_a, s_a, v_b, s_b, v_merged, s_merged):
    rows, size = s_a.numel(), v_a.shape[-1]
    if size & (size - 1) or not 8 <= size <= 1024:
        raise ValueError(f"heads of {size} values are not supported")
    # one load a thread is done soonest; a warp that has four and no barrier moves more, once the blocks fill the GPU
    tile, warps = max(1, 1024 // size), 4 if rows * size <= 1 << 21 else 1
    blocks = triton.cdiv(rows, tile)
    early = blocks <= EARLY_BLOCKS and v_a.is_cuda and torch.cuda.get_device_capability(v_a.device)[0] >= 9
    options = {"launch_pdl": True} if early else {}
    _kernel[(blocks,)](
        v_a, s_a, v_b, s_b, v_merged, s_merged, rows, size, tile, rows % tile == 0, early,
        num_warps=warps, **options,
    )
