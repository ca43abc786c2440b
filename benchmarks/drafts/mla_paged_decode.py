"""MLA decode over pages: the tiles of all sequences are dealt out equally, and a second kernel merges each head's parts.

A tile of latents is key and value at the same time, and read once for each 64 heads. What each worker gets is found on
the device, so that nothing waits for the host; to within a tile they get the same, whatever the lengths of the sequences.
From Hopper on the second kernel is launched while the first one runs, and waits for its end.
"""

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
MULTIPROCESSORS = 132
"""Of an H200."""


@triton.jit
def _count_tiles(indptr, last_len, batch, workers, PS: tl.constexpr, BN: tl.constexpr, BATCH: tl.constexpr):
    """Count the tiles of each sequence, where they end in the row of all, all of them, and how many workers get some.

    A sequence counts one more, behind its last: the time that it takes to begin with it. Whom only that falls to writes an
    empty part.
    """
    each = tl.arange(0, BATCH)
    real = each < batch
    pages = tl.load(indptr + each + 1, mask=real, other=0) - tl.load(indptr + each, mask=real, other=0)
    length = tl.where(pages > 0, (pages - 1) * PS + tl.load(last_len + each, mask=real, other=0), 0)
    tiles = tl.where(length > 0, tl.cdiv(length, BN) + 1, 0)
    all_tiles = tl.sum(tiles, axis=0)
    return tiles, tl.cumsum(tiles, axis=0), all_tiles, tl.minimum(workers, tl.maximum(all_tiles, 1))


@triton.jit
def _kernel(
    q_nope, q_pe, ckv, kpe, indptr, indices, last_len, scale, part, part_lse, batch, workers,
    QH: tl.constexpr, C: tl.constexpr, R: tl.constexpr, PS: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
    BATCH: tl.constexpr, EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    block, worker = tl.program_id(0), tl.program_id(1)
    each = tl.arange(0, BATCH)
    tiles, ends, all_tiles, busy = _count_tiles(indptr, last_len, batch, workers, PS, BN, BATCH)
    row, column, turn, token = tl.arange(0, M), tl.arange(0, C), tl.arange(0, R), tl.arange(0, BN)
    head = block * M + row
    real = (head < QH) | (QH % M == 0)
    at = head[:, None] * C + column[None, :]
    next_tile = tl.minimum(worker * all_tiles // busy, all_tiles)
    stop = tl.minimum((worker + 1) * all_tiles // busy, all_tiles)
    while next_tile < stop:
        b = tl.sum(tl.where(ends <= next_tile, 1, 0), axis=0)
        end = tl.sum(tl.where(each == b, ends, 0), axis=0)
        begin = end - tl.sum(tl.where(each == b, tiles, 0), axis=0)
        page0, page1 = tl.load(indptr + b), tl.load(indptr + b + 1)
        length = (page1 - page0 - 1) * PS + tl.load(last_len + b)
        one = b.to(tl.int64) * QH
        query = tl.load(q_nope + one * C + at, mask=real[:, None], other=0.0)
        query_pe = tl.load(q_pe + one * R + head[:, None] * R + turn[None, :], mask=real[:, None], other=0.0)
        top = tl.full((M,), float("-inf"), tl.float32)
        total = tl.zeros((M,), tl.float32)
        acc = tl.zeros((M, C), tl.float32)
        for tile in range(next_tile - begin, tl.minimum(tl.minimum(stop, end) - begin, tl.cdiv(length, BN))):
            place = tile * BN + token
            inside = place < length
            if PS % BN == 0:  # a tile lies in one page
                first = tile * BN
                base = tl.load(indices + page0 + first // PS).to(tl.int64) * PS + first % PS + token
            else:
                base = tl.load(indices + page0 + place // PS, mask=inside, other=0).to(tl.int64) * PS + place % PS
            latents = tl.load(ckv + base[:, None] * C + column[None, :], mask=inside[:, None], other=0.0)
            turned = tl.load(kpe + base[:, None] * R + turn[None, :], mask=inside[:, None], other=0.0)
            score = tl.dot(query_pe, tl.trans(turned))
            score = tl.dot(query, tl.trans(latents), score) * scale
            score = tl.where(inside[None, :], score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, axis=1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp2(score - safe[:, None])
            shrink = tl.exp2(top - safe)
            total = total * shrink + tl.sum(weight, axis=1)
            acc = tl.dot(weight.to(latents.dtype), latents, acc * shrink[:, None])
            top = higher
        slot = worker + b  # no two of all workers' parts have the same
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        mine = tl.where(total > 0, tl.log2(total) + top, float("-inf"))
        tl.store(part + slot.to(tl.int64) * QH * C + at, acc, mask=real[:, None])
        tl.store(part_lse + slot * QH + head, mine, mask=real)
        next_tile = tl.minimum(stop, end)


@triton.jit
def _merge_kernel(
    part, part_lse, indptr, last_len, out, lse, batch, workers,
    QH: tl.constexpr, WIDTH: tl.constexpr, PS: tl.constexpr, BN: tl.constexpr, BATCH: tl.constexpr, STEP: tl.constexpr,
    EARLY: tl.constexpr,
):
    head, b = tl.program_id(0), tl.program_id(1)
    each = tl.arange(0, BATCH)
    tiles, ends, all_tiles, busy = _count_tiles(indptr, last_len, batch, workers, PS, BN, BATCH)
    mine, end = tl.sum(tl.where(each == b, tiles, 0), axis=0), tl.sum(tl.where(each == b, ends, 0), axis=0)
    # the worker that has a tile is the last one whose share begins with it or before
    all_tiles = tl.maximum(all_tiles, 1)
    begin = ((end - mine + 1) * busy - 1) // all_tiles
    count = tl.where(mine > 0, (end * busy - 1) // all_tiles - begin + 1, 0)
    column, step = tl.arange(0, WIDTH), tl.arange(0, STEP)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    top = float("-inf")
    for first in range(0, count, STEP):
        spot = (b + begin + first + step) * QH + head
        theirs = tl.load(part_lse + spot, mask=first + step < count, other=float("-inf"), cache_modifier=".cg")
        top = tl.maximum(top, tl.max(theirs, axis=0))
    safe = tl.where(top == float("-inf"), 0.0, top)
    total = 0.0
    acc = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, count, STEP):
        inside = first + step < count
        spot = (b + begin + first + step).to(tl.int64) * QH + head
        theirs = tl.load(part_lse + spot, mask=inside, other=float("-inf"), cache_modifier=".cg")
        values = tl.load(
            part + spot[:, None] * WIDTH + column[None, :], mask=inside[:, None], other=0.0, cache_modifier=".cg"
        )
        weight = tl.exp2(theirs - safe)
        total += tl.sum(weight, axis=0)
        acc += tl.sum(values * weight[:, None], axis=0)
    at = b.to(tl.int64) * QH + head
    tl.store(out + at * WIDTH + column, (acc / tl.where(total > 0, total, 1.0)).to(out.dtype.element_ty))
    tl.store(lse + at, tl.where(total > 0, tl.log2(total) + safe, float("-inf")))


def run(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale, output, lse):
    batch, heads, width = q_nope.shape
    turned, page_size = q_pe.shape[-1], ckv_cache.shape[1]
    if any(size & (size - 1) or not 16 <= size <= most for size, most in ((width, 512), (turned, 64))):
        raise ValueError(f"latents of {width} values and {turned} that are turned are not supported")
    rows = 16 if heads <= 16 else 32 if heads <= 32 else 64
    blocks, tokens = triton.cdiv(heads, rows), kv_indices.numel() * page_size
    # of few tokens, most blocks have a multiprocessor each for themselves: more warps on smaller tiles
    few = rows == 16 and tokens <= 64 * MULTIPROCESSORS
    tile, warps = (32, 8) if few else (64, 4 if rows == 16 else 8)
    workers = max(1, (2 if rows == 16 else 1) * MULTIPROCESSORS // blocks)
    workers = min(workers, triton.cdiv(tokens, 2 * tile) + batch)
    part = torch.empty((workers + batch) * heads, width, dtype=torch.float32, device=q_nope.device)
    part_lse = torch.empty((workers + batch) * heads, dtype=torch.float32, device=q_nope.device)
    block = 1 if batch == 1 else max(128, triton.next_power_of_2(batch))  # shorter lists take more registers
    early = q_nope.is_cuda and torch.cuda.get_device_capability(q_nope.device)[0] >= 9
    _kernel[(blocks, workers)](
        q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale * LOG2_E, part, part_lse,
        batch, workers, heads, width, turned, page_size, rows, tile, block, early, num_warps=warps, num_stages=2,
    )
    _merge_kernel[(heads, batch)](
        part, part_lse, kv_indptr, kv_last_page_len, output, lse, batch, workers, heads, width, page_size, tile,
        block, 16 if batch <= 16 else 8, early, num_warps=4, **({"launch_pdl": True} if early else {}),
    )
