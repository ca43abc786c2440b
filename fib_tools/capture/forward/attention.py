"""Attention, through transformers' registry of attention functions: lengths are read off the masks.

Padding is taken out, as a serving engine has none: each sequence counts with the queries and keys that its mask lets
through, laid out one after the other (ragged), or in pages for decode, one query a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.functions import list_settings, name_dtype
from fib_tools.capture.forward.masks import Lengths, Mask, Masks, read_shapes
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Described, Operator, Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_attention", "repage"]

_DIMS = 4


def patch_attention(patches: Patches, direct: Patches, watch: Watch, *, page_size: int) -> None:
    """Watch every attention function that transformers gives out by name, each model's own eager one, and torch's."""
    import torch
    from transformers.modeling_utils import AttentionInterface

    watched: dict[Callable[..., Any], Callable[..., Any]] = {}
    masks = Masks()
    operator = _make_attention(masks, page_size)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_interface(self: Any, attn_implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
            found: Callable[..., Any] = original(self, attn_implementation, default)
            if watch.is_compiling:
                return found
            try:
                return watched[found]
            except KeyError:
                return watched.setdefault(found, watch.wrap(operator, found))

        return get_interface

    patches.wrap(AttentionInterface, "get_interface", make)
    functional = torch.nn.functional
    direct.wrap(functional, "scaled_dot_product_attention", partial(watch.wrap, _make_direct(masks, page_size)))


class _Key(NamedTuple):
    """What decides what a call of attention computes."""

    module: type
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    dtype: torch.dtype
    causal: bool
    mask: Mask | None
    scaling: float | None
    window: int | None
    softcap: float | None
    has_sinks: bool
    is_biased: bool
    """Whether something is added to the scores, beside the mask."""


def _make_attention(masks: Masks, page_size: int) -> Operator:
    def make_key(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *more: Any,
        **options: Any,
    ) -> Hashable:
        """Make the fields of a `_Key`, in their order."""
        del more
        own, shape, keys = module.__dict__, query.shape, key.shape
        causal = options.get("is_causal")
        return (
            type(module),
            shape,
            keys,
            value.shape,
            query.dtype,
            bool(own.get("is_causal", True) if causal is None else causal),
            None if attention_mask is None else masks.note(attention_mask, shape[0], shape[2], keys[2]),
            options.get("scaling"),
            options.get("sliding_window") or own.get("sliding_window"),
            options.get("softcap"),
            options.get("s_aux") is not None,
            options.get("position_bias") is not None,
        )

    def describe(key: Any, result: Any, module: Any, *inputs: Any, **options: Any) -> Described:
        del result, inputs, options
        own, latent = module.__dict__, None
        if own.get("kv_lora_rank"):
            latent = {"head_dim_ckv": own["kv_lora_rank"], "head_dim_kpe": own["qk_rope_head_dim"]}
        return partial(_describe_attention, _Key(*key), latent, page_size)

    return Operator(name="attention", key=make_key, describe=describe, is_growing=True, tell_caller=_tell_module)


def _tell_module(module: Any) -> Hashable:
    """Say what sets a layer's attention apart, such as a window: all of its settings but which layer it is."""
    layer = getattr(module, "layer_idx", None)
    kinds = getattr(getattr(module, "config", None), "layer_types", None) or ()
    kind = kinds[layer] if isinstance(layer, int) and layer < len(kinds) else None
    return type(module), kind, tuple(setting for setting in list_settings(module) if setting[0] != "layer_idx")


def _make_direct(masks: Masks, page_size: int) -> Operator:
    """Make what describes attention that a model calls of torch itself."""

    def make_key(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *more: Any,
        **options: Any,
    ) -> Hashable:
        """Make the fields of a `_Key`; behind the mask come dropout_p and is_causal."""
        shape, keys = query.shape, key.shape
        mask = None
        if attn_mask is not None and len(shape) == _DIMS:
            mask = masks.note(attn_mask, shape[0], shape[2], keys[2], by_pair=True)
        causal = bool(more[1]) if len(more) > 1 else bool(options.get("is_causal"))
        rest = (options.get("scale"), None, None, False, False)
        return type(None), shape, keys, value.shape, query.dtype, causal, mask, *rest

    def describe(key: Any, *_: Any, **__: Any) -> Described:
        found = _Key(*key)
        if len(found.query) != _DIMS:
            reason = f"queries have the shape {list(found.query)}, not [batch, heads, tokens, dim]"
            return Unmapped(what="attention", kernel="gqa_ragged_prefill", reason=reason)
        return partial(_describe_attention, found, None, page_size)

    return Operator(name="attention", key=make_key, describe=describe, is_growing=True)


def _describe_attention(key: _Key, latent: Mapping[str, int] | None, page_size: int) -> Call | Unmapped:
    """Describe it by its lengths; what is none of a kernel type is told with its shapes."""
    found = _describe_lengths(key, latent, page_size)
    batch, _, queries, _ = key.query
    lengths = _read_lengths(key)
    starts = {(batch, queries): _sum_up(lengths.queries)}
    if latent is not None:  # what is cached is expanded before each call
        starts.setdefault((batch, key.key[2]), _sum_up(lengths.keys))
    if isinstance(found, Unmapped):
        return replace(found, shapes=(tuple(key.query), tuple(key.key)), starts=starts)
    return replace(found, rows=(batch, queries), starts=starts)


def _read_lengths(key: _Key) -> Lengths:
    return key.mask.lengths if key.mask else read_shapes(key.query[0], key.query[2], key.key[2], causal=key.causal)


def _describe_lengths(key: _Key, latent: Mapping[str, int] | None, page_size: int) -> Call | Unmapped:
    _, heads, _, dim = key.query
    kv_heads, lengths = key.key[1], _read_lengths(key)
    if lengths.is_biased or key.is_biased:
        kernel = "gqa_paged_decode" if lengths.is_decode else "gqa_ragged_prefill"
        return Unmapped(what="attention", kernel=kernel, reason="a bias is added to its scores, as ALiBi and T5 do")
    scale = float(key.scaling) if key.scaling is not None else dim**-0.5
    sizes: dict[str, Any] = {"num_qo_heads": heads, "dtype": name_dtype(key.dtype), "sm_scale": scale}
    dim_vo, window = key.value[-1], int(key.window) if key.window else None
    if latent is not None:
        return _describe_latent(latent, sizes, lengths, dim, dim_vo, page_size)
    sizes |= {
        "num_kv_heads": kv_heads,
        "head_dim": dim,
        "head_dim_vo": dim_vo if dim_vo != dim else None,
        "window_left": window - 1 if window else -1,
        "logits_soft_cap": float(key.softcap) if key.softcap else 0.0,
        "sinks": key.has_sinks,
    }
    if lengths.is_decode:
        parameters = {**sizes, "page_size": page_size}
        return _describe_pages("gqa_paged_decode", parameters, lengths, scale, page_size, last_page=True)
    return _describe_ragged("gqa_ragged_prefill", sizes, lengths, scale, window)


def _describe_latent(
    latent: Mapping[str, int], sizes: dict[str, Any], lengths: Lengths, dim: int, dim_vo: int, page_size: int
) -> Call | Unmapped:
    """Describe attention over a latent: its prefill is that of expanded heads, its decode reads the latent itself."""
    if lengths.is_decode:
        parameters = {**sizes, **latent, "page_size": page_size}
        return _describe_pages("mla_paged_decode", parameters, lengths, sizes["sm_scale"], page_size, last_page=False)
    parameters = {**sizes, "head_dim_qk": dim, "head_dim_vo": dim_vo}
    return _describe_ragged("mla_ragged_prefill", parameters, lengths, sizes["sm_scale"], None)


def _describe_ragged(
    kernel: str, parameters: dict[str, Any], lengths: Lengths, scale: float, window: int | None
) -> Call | Unmapped:
    causal = lengths.pairs == lengths.count_pairs(window, causal=True)
    if not causal and lengths.pairs != lengths.count_pairs(window, causal=False):
        return Unmapped(what="attention", kernel=kernel, reason="its mask is neither causal nor full")
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
    kernel: str, parameters: dict[str, Any], lengths: Lengths, scale: float, page_size: int, *, last_page: bool
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
    lengths = Lengths(queries=(1,) * len(keys), keys=keys, pairs=sum(keys))
    parameters = {**call.parameters, "page_size": page_size}
    scale, last_page = call.scalars["sm_scale"], "kv_last_page_len" in call.given
    return _describe_pages(call.kernel, parameters, lengths, scale, page_size, last_page=last_page)
