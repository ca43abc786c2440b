"""MLA decode over pages: chunks of a few pages are dealt to blocks, and the last block of a sequence merges its chunks.

A tile of latents is read once and is key and value at the same time. How many chunks a sequence has is found on the
device, so that nothing waits for the host; partial results lie in a workspace, whose counters the merging block resets.
"""

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
_COUNTERS = {}


@triton.jit
def _kernel(
    q_nope, q_pe, ckv, kpe, indptr, indices, last_len, scale, out, lse, part, part_lse, counters, batch, per_chunk,
    QH: tl.constexpr, C: tl.constexpr, R: tl.constexpr, PS: tl.constexpr, M: tl.constexpr, HB: tl.constexpr,
    BATCH: tl.constexpr,
):
    block, work = tl.program_id(0), tl.program_id(1)
    each = tl.arange(0, BATCH)
    first_pages = tl.load(indptr + each, mask=each < batch, other=0)
    next_pages = tl.load(indptr + each + 1, mask=each < batch, other=0)
    chunks = tl.where(each < batch, tl.maximum(tl.cdiv(next_pages - first_pages, per_chunk), 1), 0)
    ends = tl.cumsum(chunks, axis=0)
    b = tl.sum(tl.where((each < batch) & (ends <= work), 1, 0), axis=0)
    if b < batch:
        begin = tl.sum(tl.where(each < b, chunks, 0), axis=0)
        count = tl.sum(tl.where(each == b, chunks, 0), axis=0)
        page0, page1 = tl.load(indptr + b), tl.load(indptr + b + 1)
        length = (page1 - page0 - 1) * PS + tl.load(last_len + b)
        length = tl.where(page1 > page0, length, 0)
        start = page0 + (work - begin) * per_chunk
        stop = tl.minimum(start + per_chunk, page1)

        row, column, turn = tl.arange(0, M), tl.arange(0, C), tl.arange(0, R)
        token = tl.arange(0, PS)
        head = block * M + row
        real = head < QH
        at = (b * QH + head)[:, None] * C + column[None, :]
        query = tl.load(q_nope + at, mask=real[:, None], other=0.0)
        query_pe = tl.load(q_pe + (b * QH + head)[:, None] * R + turn[None, :], mask=real[:, None], other=0.0)
        top = tl.full((M,), float("-inf"), tl.float32)
        total = tl.zeros((M,), tl.float32)
        acc = tl.zeros((M, C), tl.float32)
        for page in range(start, stop):
            base = tl.load(indices + page).to(tl.int64) * PS + token
            inside = (page - page0) * PS + token < length
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
        if count == 1:
            tl.store(out + at, acc.to(out.dtype.element_ty), mask=real[:, None])
            tl.store(lse + b * QH + head, mine, mask=real)
        else:
            spot = (work.to(tl.int64) * HB + block) * M
            tl.store(part + (spot + row)[:, None] * C + column[None, :], acc)
            tl.store(part_lse + spot + row, mine)
            tl.debug_barrier()
            counter = counters + b * HB + block
            if tl.atomic_add(counter, 1, sem="acq_rel") == count - 1:
                top = tl.full((M,), float("-inf"), tl.float32)
                total = tl.zeros((M,), tl.float32)
                acc = tl.zeros((M, C), tl.float32)
                for other in range(begin, begin + count):
                    place32 = (other * HB + block) * M
                    theirs = tl.load(part_lse + place32 + row, cache_modifier=".cg")
                    values32 = tl.load(part + (place32 + row)[:, None] * C + column[None, :], cache_modifier=".cg")
                    higher = tl.maximum(top, theirs)
                    safe = tl.where(higher == float("-inf"), 0.0, higher)
                    shrink, weight32 = tl.exp2(top - safe), tl.exp2(theirs - safe)
                    total = total * shrink + weight32
                    acc = acc * shrink[:, None] + values32 * weight32[:, None]
                    top = higher
                acc = acc / tl.where(total > 0, total, 1.0)[:, None]
                tl.store(out + at, acc.to(out.dtype.element_ty), mask=real[:, None])
                tl.store(
                    lse + b * QH + head, tl.where(total > 0, tl.log2(total) + top, float("-inf")), mask=real
                )
                tl.store(counter, 0)


def run(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale, output, lse):
    batch, heads, width = q_nope.shape
    page_size, pages = ckv_cache.shape[1], kv_indices.numel()
    tile = 16 if heads <= 16 else 32 if heads <= 32 else 64
    blocks = triton.cdiv(heads, tile)
    each = triton.cdiv(pages, batch)
    chunks = min(max(1, round(132 / (batch * blocks))), max(1, round((each / 0.45) ** 0.5)))
    per_chunk = triton.cdiv(each, chunks)
    most = triton.cdiv(pages, per_chunk) + batch
    part = torch.empty(most * blocks * tile, width, dtype=torch.float32, device=q_nope.device)
    part_lse = torch.empty(most * blocks * tile, dtype=torch.float32, device=q_nope.device)
    counters = _COUNTERS.get(q_nope.device)
    if counters is None or counters.numel() < batch * blocks:
        counters = torch.zeros(max(4096, batch * blocks), dtype=torch.int32, device=q_nope.device)
        _COUNTERS[q_nope.device] = counters
    _kernel[(blocks, most)](
        q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale * LOG2_E, output, lse,
        part, part_lse, counters, batch, per_chunk,
        heads, width, q_pe.shape[-1], page_size, tile, blocks, triton.next_power_of_2(batch), num_warps=8, num_stages=2,
    )
