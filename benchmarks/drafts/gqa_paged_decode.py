"""GQA decode over pages: chunks of a few tiles are dealt to blocks, and a second kernel merges each head's chunks.

How many chunks a sequence has is found on the device, so that nothing waits for the host. Merging in a kernel of its
own leaves the first one registers for more blocks at a time, and merges all heads at once. From Hopper on it is
launched while the first one runs, and waits for its end.
"""

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
BLOCKS = 396
"""Three for each multiprocessor of an H200."""
LONGEST = 16
"""Tiles of a chunk: with longer ones a few blocks are still at work when the others are done."""


@triton.jit
def _count_chunks(indptr, batch, tokens, PS: tl.constexpr, BATCH: tl.constexpr):
    """Count the chunks of so many tokens of each sequence; an empty one has one, which writes that it is empty."""
    each = tl.arange(0, BATCH)
    first = tl.load(indptr + each, mask=each < batch, other=0)
    after = tl.load(indptr + each + 1, mask=each < batch, other=0)
    return tl.where(each < batch, tl.maximum(tl.cdiv((after - first) * PS, tokens), 1), 0)


@triton.jit
def _kernel(
    q, k_cache, v_cache, indptr, indices, last_len, scale, part, part_lse, batch, per_chunk,
    QH: tl.constexpr, KVH: tl.constexpr, D: tl.constexpr, PS: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr,
    BN: tl.constexpr, BATCH: tl.constexpr, EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    kv_head, work = tl.program_id(0), tl.program_id(1)
    each = tl.arange(0, BATCH)
    chunks = _count_chunks(indptr, batch, per_chunk * BN, PS, BATCH)
    ends = tl.cumsum(chunks, axis=0)
    b = tl.sum(tl.where((each < batch) & (ends <= work), 1, 0), axis=0)
    if b < batch:
        begin = tl.sum(tl.where(each < b, chunks, 0), axis=0)
        page0, page1 = tl.load(indptr + b), tl.load(indptr + b + 1)
        length = (page1 - page0 - 1) * PS + tl.load(last_len + b)
        length = tl.where(page1 > page0, length, 0)
        start = (work - begin) * per_chunk
        stop = tl.minimum(start + per_chunk, tl.cdiv(length, BN))

        row, column, token = tl.arange(0, M), tl.arange(0, D), tl.arange(0, BN)
        head = kv_head * GROUP + row
        at = head[:, None] * D + column[None, :]
        real = row < GROUP
        query = tl.load(q + b.to(tl.int64) * QH * D + at, mask=real[:, None], other=0.0)
        top = tl.full((M,), float("-inf"), tl.float32)
        total = tl.zeros((M,), tl.float32)
        acc = tl.zeros((M, D), tl.float32)
        for tile in range(start, stop):
            place = tile * BN + token
            inside = place < length
            if PS % BN == 0:  # a tile lies in one page
                first = tile * BN
                base = tl.load(indices + page0 + first // PS).to(tl.int64) * PS + first % PS + token
            else:
                base = tl.load(indices + page0 + place // PS, mask=inside, other=0).to(tl.int64) * PS + place % PS
            spot = (base * KVH + kv_head)[:, None] * D + column[None, :]
            keys = tl.load(k_cache + spot, mask=inside[:, None], other=0.0)
            values = tl.load(v_cache + spot, mask=inside[:, None], other=0.0)
            score = tl.dot(query, tl.trans(keys)) * scale
            score = tl.where(inside[None, :], score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, axis=1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp2(score - safe[:, None])
            shrink = tl.exp2(top - safe)
            total = total * shrink + tl.sum(weight, axis=1)
            acc = tl.dot(weight.to(values.dtype), values, acc * shrink[:, None])
            top = higher
        mine = tl.where(total > 0, tl.log2(total) + top, float("-inf"))
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(part + work.to(tl.int64) * QH * D + at, acc, mask=real[:, None])
        tl.store(part_lse + work * QH + head, mine, mask=real)


@triton.jit
def _merge_kernel(
    part, part_lse, indptr, out, lse, batch, tokens,
    QH: tl.constexpr, D: tl.constexpr, PS: tl.constexpr, BATCH: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_wait()
    head, b = tl.program_id(0), tl.program_id(1)
    each = tl.arange(0, BATCH)
    chunks = _count_chunks(indptr, batch, tokens, PS, BATCH)
    begin = tl.sum(tl.where(each < b, chunks, 0), axis=0)
    count = tl.sum(tl.where(each == b, chunks, 0), axis=0)
    column, step = tl.arange(0, D), tl.arange(0, STEP)
    top = float("-inf")
    for first in range(0, count, STEP):
        spot = (begin + first + step) * QH + head
        theirs = tl.load(part_lse + spot, mask=first + step < count, other=float("-inf"), cache_modifier=".cg")
        top = tl.maximum(top, tl.max(theirs, axis=0))
    safe = tl.where(top == float("-inf"), 0.0, top)
    total = 0.0
    acc = tl.zeros((D,), tl.float32)
    for first in range(0, count, STEP):
        inside = first + step < count
        spot = (begin + first + step).to(tl.int64) * QH + head
        theirs = tl.load(part_lse + spot, mask=inside, other=float("-inf"), cache_modifier=".cg")
        values = tl.load(
            part + spot[:, None] * D + column[None, :], mask=inside[:, None], other=0.0, cache_modifier=".cg"
        )
        weight = tl.exp2(theirs - safe)
        total += tl.sum(weight, axis=0)
        acc += tl.sum(values * weight[:, None], axis=0)
    at = b.to(tl.int64) * QH + head
    tl.store(out + at * D + column, (acc / tl.where(total > 0, total, 1.0)).to(out.dtype.element_ty))
    tl.store(lse + at, tl.where(total > 0, tl.log2(total) + safe, float("-inf")))


def run(q, k_cache, v_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale, output, lse):
    batch, heads, dim = q.shape
    page_size, kv_heads = k_cache.shape[1:3]
    if dim & (dim - 1) or not 16 <= dim <= 256 or heads % kv_heads:
        raise ValueError(f"heads of {dim} values, {heads} of queries over {kv_heads}, are not supported")
    group, tokens = heads // kv_heads, kv_indices.numel() * page_size
    # a tile for each block is all there is: it is twice as long, and nothing is fetched ahead
    tile, stages = (128, 1) if tokens * kv_heads <= 96 * BLOCKS else (64, 4)
    per_chunk = max(1, min(LONGEST, tokens * kv_heads // (tile * BLOCKS)))
    most = max(1, triton.cdiv(tokens, per_chunk * tile)) + batch - 1
    part = torch.empty(most * heads, dim, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(most * heads, dtype=torch.float32, device=q.device)
    block = 1 if batch == 1 else max(128, triton.next_power_of_2(batch))  # shorter lists take more registers
    early = q.is_cuda and torch.cuda.get_device_capability(q.device)[0] >= 9
    _kernel[(kv_heads, most)](
        q, k_cache, v_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale * LOG2_E, part, part_lse, batch,
        per_chunk, heads, kv_heads, dim, page_size, group, max(16, triton.next_power_of_2(group)), tile, block, early,
        num_warps=4, num_stages=stages,
    )
    _merge_kernel[(heads, batch)](
        part, part_lse, kv_indptr, output, lse, batch, per_chunk * tile, heads, dim, page_size, block,
        32 if batch == 1 else 8, early, num_warps=4, **({"launch_pdl": True} if early else {}),
    )
