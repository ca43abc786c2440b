"""Attention, through transformers' registry of attention functions: lengths are read off the masks.

Padding is taken out, as a serving engine has none: each sequence counts with the queries and keys that its mask lets
through, laid out one after the other (ragged), or in pages for decode, one query a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any
from weakref import ref

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.functions import name_dtype
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_attention", "repage"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lengths:
    """What a mask lets through."""

    queries: tuple[int, ...]
    """By sequence."""
    keys: tuple[int, ...]
    pairs: int
    """Of a query and a key."""

    @property
    def is_decode(self) -> bool:
        return set(self.queries) == {1} and max(self.keys) > 1

    def count_pairs(self, window: int | None, *, causal: bool) -> int:
        """Count the pairs that a causal or full mask, with a window of so many keys, would let through."""
        total = 0
        for queries, keys in zip(self.queries, self.keys, strict=True):
            for place in range(keys - queries + 1, keys + 1) if causal else [keys] * queries:
                total += min(place, window) if window else place
        return total


class _Masks:
    """Lengths by mask: all layers of a step have the same one, and reading it waits for the device."""

    def __init__(self) -> None:
        self._last: tuple[ref[torch.Tensor], _Lengths] | None = None

    def read(self, mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, *, causal: bool) -> _Lengths:
        batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
        if mask is None:
            if causal and queries > 1:
                keys = queries  # torch aligns such a mask at the first key: what is beyond is a cache's free room
            pairs = sum(range(keys - queries + 1, keys + 1)) if causal else queries * keys
            return _Lengths(queries=(queries,) * batch, keys=(keys,) * batch, pairs=batch * pairs)
        if self._last is not None and self._last[0]() is mask:
            return self._last[1]
        lengths = _read_mask(mask, batch, queries, keys)
        self._last = (ref(mask), lengths)
        return lengths


def _read_mask(mask: torch.Tensor, batch: int, queries: int, keys: int) -> _Lengths:
    """Read `[batch, keys]`, 1 where there is a token, or `[batch, 1, queries, keys]`: True, or a bias that is not -inf."""
    import torch

    if mask.dim() == 2:  # of axes
        counts = [int(count) for count in mask.bool().sum(dim=-1).tolist()]
        own = [min(queries, count) for count in counts]
        pairs = sum(sum(range(count - have + 1, count + 1)) for have, count in zip(own, counts, strict=True))
        return _Lengths(queries=tuple(own), keys=tuple(counts), pairs=pairs)
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    allowed = allowed[:, :1].expand(batch, 1, queries, mask.shape[-1])[:, 0, :, :keys]
    # a query that stands for padding sees nothing, or itself only; a key of padding is seen by no real query
    last = allowed[:, -1]
    seen = (allowed & last.any(dim=-1)[:, None, None]).any(dim=1)
    counts = [int(count) for count in seen.sum(dim=-1).tolist()]
    own = [min(queries, count) for count in counts]
    # padding stands before the tokens, or behind them, where the first key is one that is seen
    starts = [
        0 if is_seen and have < queries else queries - have
        for is_seen, have in zip(seen[:, 0].tolist(), own, strict=True)
    ]
    pairs = sum(int(allowed[row, start : start + own[row]].sum()) for row, start in enumerate(starts))
    return _Lengths(queries=tuple(own), keys=tuple(counts), pairs=pairs)


def patch_attention(patches: Patches, watch: Watch, *, page_size: int) -> None:
    """Watch every attention function that transformers gives out by name, and each model's own eager one."""
    from transformers.modeling_utils import AttentionInterface

    watched: dict[Callable[..., Any], Callable[..., Any]] = {}
    masks = _Masks()

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_interface(self: Any, attn_implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
            found: Callable[..., Any] = original(self, attn_implementation, default)
            if watch.is_blind:
                return found
            if found not in watched:
                watched[found] = _watch_attention(watch, found, masks, page_size)
            return watched[found]

        return get_interface

    patches.wrap(AttentionInterface, "get_interface", make)


def _watch_attention(watch: Watch, original: Callable[..., Any], masks: _Masks, page_size: int) -> Callable[..., Any]:
    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
    ) -> Any:
        if watch.is_blind:
            return original(module, query, key, value, attention_mask, **options)
        own = vars(module)
        causal = own.get("is_causal", True) if options.get("is_causal") is None else options["is_causal"]
        lengths = masks.read(attention_mask, query, key, causal=bool(causal))
        shapes = (query.shape[1], key.shape[1], query.shape[3], value.shape[3], query.dtype)
        window = options.get("sliding_window") or own.get("sliding_window")
        constants = (options.get("scaling"), window, options.get("softcap"), options.get("s_aux") is not None)
        return watch.call(
            ("attention", shapes, lengths, constants),
            lambda _: _describe_attention(module, shapes, lengths, constants, page_size),
            original,
            module,
            query,
            key,
            value,
            attention_mask,
            **options,
        )

    return attention


def _describe_attention(
    module: Any, shapes: tuple[Any, ...], lengths: _Lengths, constants: tuple[Any, ...], page_size: int
) -> Call | Unmapped:
    heads, kv_heads, dim, dim_vo, dtype = shapes
    scaling, window, softcap, sinks = constants
    scale = float(scaling) if scaling is not None else dim**-0.5
    sizes: dict[str, Any] = {"num_qo_heads": heads, "dtype": name_dtype(dtype), "sm_scale": scale}
    if getattr(module, "kv_lora_rank", None):
        return _describe_latent(module, sizes, lengths, dim, dim_vo, page_size)
    sizes |= {
        "num_kv_heads": kv_heads,
        "head_dim": dim,
        "head_dim_vo": dim_vo if dim_vo != dim else None,
        "window_left": int(window) - 1 if window else -1,
        "logits_soft_cap": float(softcap) if softcap else 0.0,
        "sinks": sinks,
    }
    if lengths.is_decode:
        parameters = {**sizes, "page_size": page_size}
        return _describe_pages("gqa_paged_decode", parameters, lengths, scale, page_size, last_page=True)
    return _describe_ragged("gqa_ragged_prefill", sizes, lengths, scale, int(window) if window else None)


def _describe_latent(
    module: Any, sizes: dict[str, Any], lengths: _Lengths, dim: int, dim_vo: int, page_size: int
) -> Call | Unmapped:
    """Describe attention over a latent: its prefill is that of expanded heads, its decode reads the latent itself."""
    if lengths.is_decode:
        latent = {"head_dim_ckv": module.kv_lora_rank, "head_dim_kpe": module.qk_rope_head_dim, "page_size": page_size}
        parameters = {**sizes, **latent}
        return _describe_pages("mla_paged_decode", parameters, lengths, sizes["sm_scale"], page_size, last_page=False)
    parameters = {**sizes, "head_dim_qk": dim, "head_dim_vo": dim_vo}
    return _describe_ragged("mla_ragged_prefill", parameters, lengths, sizes["sm_scale"], None)


def _describe_ragged(
    kernel: str, parameters: dict[str, Any], lengths: _Lengths, scale: float, window: int | None
) -> Call | Unmapped:
    causal = lengths.pairs == lengths.count_pairs(window, causal=True)
    if not causal and lengths.pairs != lengths.count_pairs(window, causal=False):
        return Unmapped(what="attention", reason="its mask is neither causal nor full")
    starts = {"qo_indptr": _sum_up(lengths.queries), "kv_indptr": _sum_up(lengths.keys)}
    axes = {"len_indptr": len(lengths.keys) + 1, "total_q": sum(lengths.queries), "total_kv": sum(lengths.keys)}
    return Call(
        kernel=kernel,
        parameters={**parameters, "causal": causal},
        axes=axes,
        given=starts,
        scalars={"sm_scale": scale},
    )


def _describe_pages(
    kernel: str, parameters: dict[str, Any], lengths: _Lengths, scale: float, page_size: int, *, last_page: bool
) -> Call:
    pages = [-(-keys // page_size) for keys in lengths.keys]
    given: dict[str, tuple[int, ...]] = {"kv_indptr": _sum_up(pages), "kv_indices": tuple(range(sum(pages)))}
    if last_page:
        given["kv_last_page_len"] = tuple((keys - 1) % page_size + 1 for keys in lengths.keys)
    axes = {"batch_size": len(pages), "num_pages": sum(pages), "len_indptr": len(pages) + 1}
    axes["num_kv_indices"] = sum(pages)
    return Call(kernel=kernel, parameters=parameters, axes=axes, given=given, scalars={"sm_scale": scale})


def _sum_up(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(accumulate(lengths, initial=0))


def repage(call: Call, page_size: int) -> Call:
    """Describe a decode call, which was described in pages of one token, in larger ones."""
    starts = call.given["kv_indptr"]
    keys = tuple(int(after - before) for before, after in pairwise(starts))
    lengths = _Lengths(queries=(1,) * len(keys), keys=keys, pairs=sum(keys))
    parameters = {**call.parameters, "page_size": page_size}
    scale, last_page = call.scalars["sm_scale"], "kv_last_page_len" in call.given
    return _describe_pages(call.kernel, parameters, lengths, scale, page_size, last_page=last_page)
