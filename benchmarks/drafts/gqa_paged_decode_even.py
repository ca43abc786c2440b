"""GQA decode over pages: chunks of a few pages are dealt to blocks, and the last block of a sequence merges its chunks.

How many chunks a sequence has is found on the device, so that nothing waits for the host; the chunks' partial results lie
in a workspace, whose counters the merging block sets back to zero.
"""

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
_COUNTERS = {}


@triton.jit
def _kernel(
    q, k_cache, v_cache, indptr, indices, last_len, scale, out, lse, part, part_lse, counters, batch, per_chunk,
    QH: tl.constexpr, KVH: tl.constexpr, D: tl.constexpr, PS: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr,
    BATCH: tl.constexpr,
):
    work, kv_head = tl.program_id(0), tl.program_id(1)
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

        row, column = tl.arange(0, M), tl.arange(0, D)
        token = tl.arange(0, PS)
        head = kv_head * GROUP + row
        at = (b * QH + head)[:, None] * D + column[None, :]
        query = tl.load(q + at, mask=(row < GROUP)[:, None], other=0.0)
        top = tl.full((M,), float("-inf"), tl.float32)
        total = tl.zeros((M,), tl.float32)
        acc = tl.zeros((M, D), tl.float32)
        for page in range(start, stop):
            base = tl.load(indices + page).to(tl.int64) * PS
            inside = (page - page0) * PS + token < length
            place = ((base + token) * KVH + kv_head)[:, None] * D + column[None, :]
            keys = tl.load(k_cache + place, mask=inside[:, None], other=0.0)
            values = tl.load(v_cache + place, mask=inside[:, None], other=0.0)
            score = tl.dot(query, tl.trans(keys)) * scale
            score = tl.where(inside[None, :], score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, axis=1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp2(score - safe[:, None])
            shrink = tl.exp2(top - safe)
            total = total * shrink + tl.sum(weight, axis=1)
            acc = acc * shrink[:, None] + tl.dot(weight.to(values.dtype), values)
            top = higher
        mine = tl.where(total > 0, tl.log2(total) + top, float("-inf"))
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        if count == 1:
            tl.store(out + at, acc.to(out.dtype.element_ty), mask=(row < GROUP)[:, None])
            tl.store(lse + b * QH + head, mine, mask=row < GROUP)
        else:
            spot = (work.to(tl.int64) * KVH + kv_head) * M
            tl.store(part + (spot + row)[:, None] * D + column[None, :], acc)
            tl.store(part_lse + spot + row, mine)
            tl.debug_barrier()
            counter = counters + b * KVH + kv_head
            if tl.atomic_add(counter, 1, sem="acq_rel") == count - 1:
                top = tl.full((M,), float("-inf"), tl.float32)
                total = tl.zeros((M,), tl.float32)
                acc = tl.zeros((M, D), tl.float32)
                for other in range(begin, begin + count):
                    place32 = (other * KVH + kv_head) * M
                    theirs = tl.load(part_lse + place32 + row, cache_modifier=".cg")
                    values32 = tl.load(part + (place32 + row)[:, None] * D + column[None, :], cache_modifier=".cg")
                    higher = tl.maximum(top, theirs)
                    safe = tl.where(higher == float("-inf"), 0.0, higher)
                    shrink, weight32 = tl.exp2(top - safe), tl.exp2(theirs - safe)
                    total = total * shrink + weight32
                    acc = acc * shrink[:, None] + values32 * weight32[:, None]
                    top = higher
                acc = acc / tl.where(total > 0, total, 1.0)[:, None]
                tl.store(out + at, acc.to(out.dtype.element_ty), mask=(row < GROUP)[:, None])
                tl.store(
                    lse + b * QH + head,
                    tl.where(total > 0, tl.log2(total) + top, float("-inf")),
                    mask=row < GROUP,
                )
                tl.store(counter, 0)


def run(q, k_cache, v_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale, output, lse):
    batch, heads, dim = q.shape
    page_size, kv_heads = k_cache.shape[1:3]
    pages = kv_indices.numel()
    each = triton.cdiv(pages, batch)
    chunks = min(max(1, round(264 / (batch * kv_heads))), max(1, round((each / 0.4) ** 0.5)))
    per_chunk = triton.cdiv(each, chunks)
    most = triton.cdiv(pages, per_chunk) + batch
    group = heads // kv_heads
    tile = max(16, triton.next_power_of_2(group))
    part = torch.empty(most * kv_heads * tile, dim, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(most * kv_heads * tile, dtype=torch.float32, device=q.device)
    counters = _COUNTERS.get(q.device)
    if counters is None or counters.numel() < batch * kv_heads:
        counters = _COUNTERS[q.device] = torch.zeros(max(4096, batch * kv_heads), dtype=torch.int32, device=q.device)
    _kernel[(most, kv_heads)](
        q, k_cache, v_cache, kv_indptr, kv_indices, kv_last_page_len, sm_scale * LOG2_E, output, lse,
        part, part_lse, counters, batch, per_chunk,
        heads, kv_heads, dim, page_size, group, tile, triton.next_power_of_2(batch), num_warps=4, num_stages=3,
    )
