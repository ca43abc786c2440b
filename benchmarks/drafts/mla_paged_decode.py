"""MLA decode over pages: chunks of a few tiles are dealt to blocks, and a second kernel merges each head's chunks.

A tile of latents is read once and is key and value at the same time. How many chunks a sequence has is found on the
device, so that nothing waits for the host. From Hopper on the second kernel is launched while the first one runs, and
waits for its end.
"""

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
MULTIPROCESSORS = 132
"""Of an H200."""


@triton.jit
def _count_chunks(indptr, batch, tokens, PS: tl.constexpr, BATCH: tl.constexpr):
    """Count the chunks of so many tokens of each sequence; an empty one has one, which writes that it is empty."""
    each = tl.arange(0, BATCH)
    first = tl.load(indptr + each, mask=each < batch, other=0)
    after = tl.load(indptr + each + 1, mask=each < batch, other=0)
    return tl.where(each < batch, tl.maximum(tl.cdiv((after - first) * PS, tokens), 1), 0)


@triton.jit
def _kernel(
    q_nope, q_pe, ckv, kpe, indptr, indices, last_len, scale, part, part_lse, batch, per_chunk,
    QH: tl.constexpr, C: tl.constexpr, R: tl.constexpr, PS: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
    BATCH: tl.constexpr, EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    block, work = tl.program_id(0), tl.program_id(1)
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

        row, column, turn, token = tl.arange(0, M), tl.arange(0, C), tl.arange(0, R), tl.arange(0, BN)
        head = block * M + row
        real = (head < QH) | (QH % M == 0)
        at = head[:, None] * C + column[None, :]
        one = b.to(tl.int64) * QH
        query = tl.load(q_nope + one * C + at, mask=real[:, None], other=0.0)
        query_pe = tl.load(q_pe + one * R + head[:, None] * R + turn[None, :], mask=real[:, None], other=0.0)
        top = tl.full((M,), float("-inf"), tl.float32)
        total = tl.zeros((M,), tl.float32)
        acc = tl.zeros((M, C), tl.float32)
        for tile in range(start, stop):
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
        mine = tl.where(total > 0, tl.log2(total) + top, float("-inf"))
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(part + work.to(tl.int64) * QH * C + at, acc, mask=real[:, None])
        tl.store(part_lse + work * QH + head, mine, mask=real)


@triton.jit
def _merge_kernel(
    part, part_lse, indptr, out, lse, batch, tokens,
    QH: tl.constexpr, C: tl.constexpr, PS: tl.constexpr, BATCH: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_wait()
    head, b = tl.program_id(0), tl.program_id(1)
    each = tl.arange(0, BATCH)
    chunks = _count_chunks(indptr, batch, tokens, PS, BATCH)
    begin = tl.sum(tl.where(each < b, chunks, 0), axis=0)
    count = tl.sum(tl.where(each == b, chunks, 0), axis=0)
    column, step = tl.arange(0, C), tl.arange(0, STEP)
    top = float("-inf")
    for first in range(0, count, STEP):
        spot = (begin + first + step) * QH + head
        theirs = tl.load(part_lse + spot, mask=first + step < count, other=float("-inf"), cache_modifier=".cg")
        top = tl.maximum(top, tl.max(theirs, axis=0))
    safe = tl.where(top == float("-inf"), 0.0, top)
    total = 0.0
    acc = tl.zeros((C,), tl.float32)
    for first in range(0, count, STEP):
        inside = first + step < count
        spot = (begin + first + step).to(tl.int64) * QH + head
        theirs = tl.load(part_lse + spot, mask=inside, other=float("-inf"), cache_modifier=".cg")
        values = tl.load(
            part + spot[:, None] * C + column[None, :], mask=inside[:, None], other=0.0, cache_modifier=".cg"
        )
        weight = tl.exp2(theirs - safe)
        total += tl.sum(weight, axis=0)
        acc += tl.sum(values * weight[:, None], axis=0)
    at = b.to(tl.int64) * QH + head
    tl.store(out + at * C + column, (acc / tl.where(total > 0, total, 1.0)).to(out.dtype.element_ty))
    tl.store(lse + at, tl.where(total > 0, tl.log2(total) + safe, float("-inf")))


def run(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale, output, lse):
    batch, heads, width = q_nope.shape
    turned, page_size = q_pe.shape[-1], ckv_cache.shape[1]
    if any(size & (size - 1) or not 16 <= size <= most for size, most in ((width, 512), (turned, 64))):
        raise ValueError(f"latents of {width} values and {turned} that are turned are not supported")
    rows = 16 if heads <= 16 else 32 if heads <= 32 else 64
    blocks, tokens = triton.cdiv(heads, rows), kv_indices.numel() * page_size
    # few blocks have a multiprocessor each for themselves: more warps on smaller tiles
    few = rows == 16 and tokens <= 64 * MULTIPROCESSORS
    tile, warps = (32, 8) if few else (64, 4 if rows == 16 else 8)
    at_once = MULTIPROCESSORS if rows > 16 else 2 * MULTIPROCESSORS
    # sequences of the mean length are cut into equal parts, of as many tokens as leave no block without one
    parts = max(1, at_once // (batch * blocks))
    per_chunk = max(2, triton.cdiv(triton.cdiv(tokens, tile * batch), parts))
    most = max(1, triton.cdiv(tokens, per_chunk * tile)) + batch - 1
    part = torch.empty(most * heads, width, dtype=torch.float32, device=q_nope.device)
    part_lse = torch.empty(most * heads, dtype=torch.float32, device=q_nope.device)
    block = 1 if batch == 1 else max(128, triton.next_power_of_2(batch))  # shorter lists take more registers
    early = q_nope.is_cuda and torch.cuda.get_device_capability(q_nope.device)[0] >= 9
    _kernel[(blocks, most)](
        q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale * LOG2_E, part, part_lse,
        batch, per_chunk, heads, width, turned, page_size, rows, tile, block, early, num_warps=warps, num_stages=2,
    )
    _merge_kernel[(heads, batch)](
        part, part_lse, kv_indptr, output, lse, batch, per_chunk * tile, heads, width, page_size, block,
        16 if batch == 1 else 8, early, num_warps=4, **({"launch_pdl": True} if early else {}),
    )
