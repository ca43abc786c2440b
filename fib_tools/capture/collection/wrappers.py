"""Calls of the attention wrappers: plan() and run() put together.

SGLang's tensors are not always what FlashInfer's names make of them: a pool of single tokens has three dimensions, and
forward() sets on the object what plan() was not told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fib_tools.capture.collection.dumps import Call, TensorFacts
from fib_tools.capture.collection.experts import EXPERTS_FUNCTION, observe_experts
from fib_tools.capture.collection.observation import (
    Observation,
    Plan,
    Seen,
    list_numbers,
    observe_function,
    see_all,
    see_paged,
)
from fib_tools.capture.collection.products import PRODUCT_FUNCTION, observe_product
from fib_tools.errors import FormatError

__all__ = ["needs_plan", "observe"]

_HIDDEN = frozenset({"sm_scale", "logits_soft_cap", "window_left", "pos_encoding_mode"})
"""What the wrappers' forward() sets between plan() and run(), where no dump sees it."""


def needs_plan(call: Call) -> bool:
    """Tell whether a call means nothing without the plan() before it."""
    return call.function in _WRAPPERS


def observe(call: Call, plan: Plan | None = None, *, expert_skew: float | None = None) -> Observation:
    """Put together what a call and its plan say; see `experts` for `expert_skew`.

    Raises:
        FormatError: they contradict one another, or are not what is known of the API.
    """
    if call.function == EXPERTS_FUNCTION:
        return observe_experts(call, skew=expert_skew)
    if call.function == PRODUCT_FUNCTION:
        return observe_product(call)
    wrapper = _WRAPPERS.get(call.function)
    if wrapper is None:
        return observe_function(call)
    if plan is None:
        raise FormatError("no plan() of the same object stands before it", where=call.folder.name)
    return wrapper(call, plan)


def _observe_paged(call: Call, plan: Plan) -> Observation:
    settings = {**plan.call.defaults, **plan.call.arguments}
    tensors = {**dict(plan.tensors), **see_all(call)}
    keys, values = _split_cache(call)
    layout = (settings.get("page_size"), settings.get("num_kv_heads"))
    tensors |= {"k_cache": _read_cache(keys, layout, call), "v_cache": _read_cache(values, layout, call)}
    facts, hidden = _read_settings(call, plan)
    notes: tuple[str, ...] = ()
    if "qo_indptr" in tensors:
        causal, note = _find_paged_mask(call, plan)
        facts, notes = {**facts, "causal": causal}, (note,) * bool(note)
    return Observation(
        call=call, tensors=tensors, scalars=_wrapper_numbers(call, plan), facts=facts, hidden=hidden, notes=notes
    )


def _split_cache(call: Call) -> tuple[TensorFacts, TensorFacts]:
    cache = call.arguments.get("paged_kv_cache")
    if isinstance(cache, tuple) and len(cache) == 2 and all(isinstance(item, TensorFacts) for item in cache):
        return cache[0], cache[1]
    if isinstance(cache, TensorFacts) and len(cache.shape) == 5 and cache.shape[1] == 2:
        half = TensorFacts(
            shape=(cache.shape[0], *cache.shape[2:]), dtype=cache.dtype, folder=cache.folder, key=cache.key
        )
        return half, half
    raise FormatError("its paged_kv_cache is no pair of keys and values", where=call.folder.name)


def _read_cache(cache: TensorFacts, layout: tuple[Any, Any], call: Call) -> Seen:
    """Read a cache as [pages, page_size, heads, dim], with the sizes that plan() was told."""
    page_size, heads = layout
    shape = cache.shape
    if len(shape) == 3 and page_size == 1 and shape[1] == heads:
        return see_paged(cache, (shape[0], 1, *shape[1:]))
    if len(shape) == 4 and shape[1:3] == (page_size, heads):
        return see_paged(cache)
    if len(shape) == 4 and shape[1:3] == (heads, page_size):
        return see_paged(cache, (shape[0], shape[2], shape[1], shape[3]))
    raise FormatError(
        f"a cache of the shape {shape} holds no pages of {page_size} tokens with {heads} heads", where=call.folder.name
    )


def _read_settings(call: Call, plan: Plan) -> tuple[dict[str, Any], frozenset[str]]:
    """Read the parameters that plan() and run() fix; what forward() may have set behind them is hidden."""
    told = {**plan.call.arguments, **call.arguments, **call.state}
    plain = (bool, int, float, str)
    facts = {name: value for name, value in told.items() if isinstance(value, plain) and name != "causal"}
    if call.state.get("logits_soft_cap", ...) is None:
        facts["logits_soft_cap"] = 0.0  # run() caps nothing then
    if facts.get("pos_encoding_mode", "NONE") != "NONE":
        raise FormatError("it turns the keys as it reads them, which no Definition does", where=call.folder.name)
    for old, new in (("head_dim_qk", "head_dim"), ("num_heads", "num_qo_heads")):
        if old in facts:
            facts[new] = facts[old]
    if told.get("custom_mask") is not None or told.get("packed_custom_mask") is not None:
        raise FormatError("it has a mask of its own, which no Definition has", where=call.folder.name)
    return facts, frozenset(_HIDDEN - facts.keys())


def _wrapper_numbers(call: Call, plan: Plan) -> dict[str, float | int | bool]:
    numbers = {**list_numbers(plan.call), **list_numbers(call)}
    scale, queries = call.state.get("sm_scale", ...), call.arguments.get("q")
    if isinstance(scale, float):
        return {**numbers, "sm_scale": scale}
    if scale is None and isinstance(queries, TensorFacts) and queries.shape and queries.shape[-1]:
        return {**numbers, "sm_scale": queries.shape[-1] ** -0.5}  # what run() takes for None
    return numbers


def _find_paged_mask(call: Call, plan: Plan) -> tuple[bool, str]:
    """Find whether a paged prefill is causal.

    SGLang asks for the log-sum-exp when it attends to a cached prefix, all of which every new token sees, to merge it
    with the new tokens' own attention; else it attends to both at once, causally.
    """
    if isinstance(call.state.get("causal"), bool):
        return call.state["causal"], ""
    if plan.call.arguments.get("causal") is True:
        return True, "causal: plan() says so"
    if call.arguments.get("return_lse") is True:
        return False, "not causal: the log-sum-exp of a cached prefix is asked for, as SGLang does to merge states"
    return True, "causal: SGLang's forward() says so after plan()"


def _observe_ragged(call: Call, plan: Plan) -> Observation:
    tensors = {**dict(plan.tensors), **see_all(call)}
    facts, hidden = _read_settings(call, plan)
    causal, note = _find_ragged_mask(call, plan)
    facts = {**facts, "causal": causal}
    return Observation(
        call=call,
        tensors=tensors,
        scalars=_wrapper_numbers(call, plan),
        facts=facts,
        hidden=hidden,
        notes=(note,) * bool(note),
    )


def _find_ragged_mask(call: Call, plan: Plan) -> tuple[bool, str]:
    """Find whether a ragged prefill is causal: new tokens among themselves are, those that look at a prefix are not."""
    if isinstance(call.state.get("causal"), bool):
        return call.state["causal"], ""
    if plan.call.arguments.get("causal") is True:
        return True, "causal: plan() says so"
    queries, keys = plan.tensors.get("qo_indptr"), plan.tensors.get("kv_indptr")
    if queries is None or keys is None or queries.values is None or keys.values is None:
        raise FormatError("its indptr are not in the dump", where=plan.call.folder.name)
    if queries.values.tolist() == keys.values.tolist():
        return True, "causal: new tokens among themselves, as SGLang's forward() says after plan()"
    return False, "not causal: plan() says so, and keys are others than the queries' own"


def _observe_latent(call: Call, plan: Plan) -> Observation:
    settings = {**plan.call.defaults, **plan.call.arguments}
    tensors = {**dict(plan.tensors), **see_all(call)}
    for name in ("ckv_cache", "kpe_cache"):
        cache = call.arguments.get(name)
        if isinstance(cache, TensorFacts):
            tensors[name] = see_paged(cache)
    tensors |= _read_last_pages(plan, settings.get("page_size"))
    facts, hidden = _read_settings(call, plan)
    facts["causal"] = settings.get("causal") is True
    return Observation(call=call, tensors=tensors, scalars=_wrapper_numbers(call, plan), facts=facts, hidden=hidden)


def _read_last_pages(plan: Plan, page_size: Any) -> dict[str, Seen]:
    """Work out how full the last page of each sequence is, from the sequences' lengths."""
    lengths = plan.tensors.get("kv_len_arr")
    if lengths is None or lengths.values is None or not isinstance(page_size, int) or page_size < 1:
        return {}
    values = lengths.values.sub(1).remainder(page_size).add(1).where(lengths.values > 0, lengths.values)
    return {"kv_last_page_len": Seen(shape=lengths.shape, dtype=lengths.dtype, values=values)}


_WRAPPERS: Mapping[str, Callable[[Call, Plan], Observation]] = {
    "BatchDecodeWithPagedKVCacheWrapper.run": _observe_paged,
    "BatchPrefillWithPagedKVCacheWrapper.run": _observe_paged,
    "BatchPrefillWithRaggedKVCacheWrapper.run": _observe_ragged,
    "BatchMLAPagedAttentionWrapper.run": _observe_latent,
}
