"""The least work of attention: the keys that some query sees, each read once, and the products of those pairs.

A page that several sequences share counts once. Masks come from the constants and lines that our references hold; of a
reference whose mask is not understood, nothing of the cache is counted.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["latent_attention_work", "paged_attention_work", "ragged_attention_work"]

_UNKNOWN_MASK = re.compile(r"window|chunk|sliding|alibi|custom_mask|block_mask", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mask:
    """Which keys a query sees, by positions in its sequence."""

    causal: bool
    window_left: int | None
    chunk: int | None

    def count(self, queries: int, keys: int) -> tuple[range, int]:
        """Give the keys of a sequence that some query sees, and the number of pairs of a query and a key it sees."""
        import torch

        if not queries or not keys:
            return range(0), 0
        position = torch.arange(keys - queries, keys)
        first = torch.zeros_like(position)
        if self.window_left is not None:
            first = position - self.window_left
        if self.chunk is not None:
            first = torch.maximum(first, position.div(self.chunk, rounding_mode="floor") * self.chunk)
        last = position if self.causal else torch.full_like(position, keys - 1)
        if self.chunk is not None:
            last = torch.minimum(last, (position.div(self.chunk, rounding_mode="floor") + 1) * self.chunk - 1)
        first = first.clamp(min=0)
        seen = (last - first + 1).clamp(min=0)
        if not seen.any():
            return range(0), 0
        return range(int(first[seen > 0].min()), int(last.max()) + 1), int(seen.sum())


def _find_mask(request: WorkRequest, *, decode: bool) -> _Mask | None:
    """Read the mask off a Definition; a prefill that does not say `full` is taken as causal, which is less work."""
    window, chunk = request.find_constant("WINDOW_LEFT"), request.find_constant("CHUNK")
    text = f"{request.definition.name} {request.definition.reference}"
    if window is None and chunk is None and _UNKNOWN_MASK.search(text):
        return None
    return _Mask(causal=not decode and "_full_" not in request.definition.name, window_left=window, chunk=chunk)


def _queries_of(request: WorkRequest, sequences: int) -> list[int]:
    if not request.has("qo_indptr"):
        return [1] * sequences
    lengths: list[int] = request.integers("qo_indptr").diff().tolist()
    return lengths


def _find_slots(request: WorkRequest, cache: str, mask: _Mask) -> tuple[int, int]:
    """Count the slots of a paged cache that some query sees, and the pairs of a query and a key it sees."""
    import torch

    page_size = request.shape(cache)[1]
    bounds, pages = request.integers("kv_indptr").tolist(), request.integers("kv_indices")
    queries = _queries_of(request, len(bounds) - 1)
    ends = request.integers("kv_last_page_len").tolist() if request.has("kv_last_page_len") else None
    touched = torch.zeros(request.shape(cache)[0], page_size, dtype=torch.bool)
    pairs = 0
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        last = page_size if ends is None else ends[index]
        seen, more = mask.count(queries[index], (end - start - 1) * page_size + last if end > start else 0)
        pairs += more
        _touch(touched, pages[start:end], seen)
    return int(touched.sum()), pairs


def _touch(touched: torch.Tensor, pages: torch.Tensor, seen: range) -> None:
    import torch

    if seen:
        keys = torch.arange(seen.start, seen.stop)
        touched[pages[keys // touched.shape[1]], keys % touched.shape[1]] = True


def paged_attention_work(request: WorkRequest) -> Work | None:
    """Count attention of `q` to `k_cache` and `v_cache`, [pages, page_size, heads, width]."""
    caches = ("k_cache", "v_cache")
    if not request.has("q", *caches, "kv_indptr", "kv_indices") or len(request.shape("k_cache")) != 4:
        return None
    sinks = request.read("sinks") if request.has("sinks") else 0
    mask = _find_mask(request, decode=not request.has("qo_indptr"))
    if mask is None:
        return Work(read=request.read("q") + sinks, written=request.written())
    slots, pairs = _find_slots(request, "k_cache", mask)
    width = request.shape("k_cache")[-1] + request.shape("v_cache")[-1]
    rows = sum(request.read_rows(name, slots, leading=2) for name in caches)
    return Work(
        read=request.read("q") + sinks + rows,
        written=request.written(),
        flops=2 * pairs * request.shape("q")[1] * width,
        unit=request.unit("k_cache"),
    )


def latent_attention_work(request: WorkRequest) -> Work | None:
    """Count attention of `q_nope` and `q_pe` to `ckv_cache` and `kpe_cache`; latents are keys and values at once."""
    queries, caches = ("q_nope", "q_pe"), ("ckv_cache", "kpe_cache")
    if not request.has(*queries, *caches, "kv_indptr", "kv_indices") or len(request.shape("ckv_cache")) != 3:
        return None
    mask = _find_mask(request, decode=not request.has("qo_indptr"))
    if mask is None:
        return Work(read=request.read(*queries), written=request.written())
    slots, pairs = _find_slots(request, "ckv_cache", mask)
    latent, rotary = (request.shape(name)[-1] for name in caches)
    return Work(
        read=request.read(*queries) + sum(request.read_rows(name, slots, leading=2) for name in caches),
        written=request.written(),
        flops=2 * pairs * request.shape("q_nope")[1] * (2 * latent + rotary),
        unit=request.unit("ckv_cache"),
    )


def ragged_attention_work(request: WorkRequest) -> Work | None:
    """Count attention of `q` to `k` and `v`, [tokens, heads, width], one sequence after the other."""
    if not request.has("q", "k", "v", "qo_indptr", "kv_indptr"):
        return None
    sinks = request.read("sinks") if request.has("sinks") else 0
    mask = _find_mask(request, decode=False)
    if mask is None:
        return Work(read=request.read("q") + sinks, written=request.written())
    keys = request.integers("kv_indptr").diff().tolist()
    counted = [mask.count(*lengths) for lengths in zip(_queries_of(request, len(keys)), keys, strict=True)]
    rows, pairs = sum(len(seen) for seen, _ in counted), sum(more for _, more in counted)
    width = request.shape("k")[-1] + request.shape("v")[-1]
    return Work(
        read=request.read("q") + sinks + request.read_rows("k", rows) + request.read_rows("v", rows),
        written=request.written(),
        flops=2 * pairs * request.shape("q")[1] * width,
        unit=request.unit("k"),
    )
