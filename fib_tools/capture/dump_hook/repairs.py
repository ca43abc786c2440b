"""What a call says that its trace template cannot see: the page view of a flat pool, plan-time tensors, semantics.

Templates read shapes off the arguments of `run()`. The wrapper holds what was given to `plan()`; and a reference that
is causal, or has an epsilon written into it, is wrong for a call that is not, or has another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Repair", "repair_call"]

_TEMPLATE_EPS = 1e-6
"""What the references of FlashInfer's norm templates compute with."""
_FP8 = ("float8_e4m3fn", "float8_e5m2")


@dataclass
class Repair:
    """A call as the template should have seen it, and what the kernel is where the template cannot say it."""

    arguments: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    kernel: str | None = None
    """The kernel type, when the template's name or reference would be another's."""
    parameters: dict[str, Any] = field(default_factory=dict)
    keeps_reference: bool = True

    def say(self, kernel: str, parameters: dict[str, Any], note: str) -> None:
        """State what the kernel is; the template's reference computes something else."""
        self.kernel = kernel
        self.parameters |= {name: value for name, value in parameters.items() if value is not None}
        self.keeps_reference = False
        self.notes.append(note)


def repair_call(fi_api: str, arguments: dict[str, Any]) -> Repair:
    """Repair the arguments of one call; a call of which nothing is known comes back as it is."""
    repair = Repair(arguments=dict(arguments))
    method = _METHODS.get(".".join(fi_api.rsplit(".", 2)[-2:])) or _FUNCTIONS.get(fi_api.rsplit(".", 1)[-1])
    if method is not None:
        method(repair)
    return repair


def _take(repair: Repair, *names: str) -> list[Any]:
    return [repair.arguments.get(name) for name in names]


def _is_tensor(value: Any) -> TypeGuard[Any]:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "ndim")


def _dtype(value: Any) -> str:
    return str(value.dtype).rpartition(".")[2]


def _attribute(wrapper: Any, *names: str) -> Any:
    for name in names:
        value = getattr(wrapper, name, None)
        if value is not None:
            return value
    return None


def _fill_plan(repair: Repair, **buffers: tuple[str, ...]) -> None:
    """Pass on what the wrapper was given when it planned."""
    wrapper = repair.arguments.get("self")
    for name, attributes in buffers.items():
        value = _attribute(wrapper, *attributes)
        if repair.arguments.get(name) is None and _is_tensor(value):
            repair.arguments[name] = value
            repair.notes.append(f"{name}: {_dtype(value)}, as planned")
    scale = _attribute(wrapper, "_sm_scale")
    if repair.arguments.get("sm_scale") is None and scale is not None:
        repair.arguments["sm_scale"] = scale


def _view_pages(repair: Repair) -> None:
    """View the cache as a pair of [pages, page_size, heads, dim]."""
    cache = repair.arguments.get("paged_kv_cache")
    if _is_tensor(cache) and cache.ndim == 5:
        cache = (cache[:, 0], cache[:, 1])
        repair.notes.append("the cache is one tensor of keys and values")
    if not isinstance(cache, (tuple, list)) or len(cache) != 2 or not all(_is_tensor(item) for item in cache):
        return
    keys, values = cache
    if keys.ndim == 3:
        keys, values = keys.unsqueeze(1), values.unsqueeze(1)
        repair.notes.append("3-D pool: pages hold 1 token")
    elif keys.ndim == 4 and getattr(repair.arguments.get("self"), "_kv_layout", "NHD") == "HND":
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        repair.notes.append("HND pool: heads stand before the tokens of a page")
    repair.arguments["paged_kv_cache"] = (keys, values)


def _semantics(repair: Repair, *, has_mask: bool) -> dict[str, Any]:
    """Read off the wrapper what makes another kernel of the same shapes, where it is not what the template computes."""
    wrapper = repair.arguments.get("self")
    found: dict[str, Any] = {}
    if has_mask and getattr(wrapper, "_causal", True) is False:
        found["causal"] = False
    window = _attribute(wrapper, "_window_left")
    if isinstance(window, int) and window >= 0:
        found["window_left"] = window
    cap = _attribute(wrapper, "_logits_soft_cap")
    if isinstance(cap, (int, float)) and cap > 0:
        found["logits_soft_cap"] = float(cap)
    return found


def _describe(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _paged(repair: Repair, kernel: str, *, has_mask: bool) -> None:
    _view_pages(repair)
    plan = {"kv_indptr": ("_paged_kv_indptr_buf",), "kv_indices": ("_paged_kv_indices_buf",)}
    _fill_plan(repair, **plan, **({"qo_indptr": ("_qo_indptr_buf",)} if has_mask else {}))
    query, cache = repair.arguments.get("q"), repair.arguments.get("paged_kv_cache")
    if not _is_tensor(query) or not isinstance(cache, (tuple, list)) or cache[0].ndim != 4:
        return
    other = _semantics(repair, has_mask=has_mask)
    if _dtype(cache[0]) in _FP8:
        other["kv_dtype"] = _dtype(cache[0])
    if other:
        sizes = {
            "num_qo_heads": query.shape[1],
            "num_kv_heads": cache[0].shape[2],
            "head_dim": query.shape[2],
            "head_dim_vo": cache[1].shape[3],
            "page_size": cache[0].shape[1],
            "sm_scale": repair.arguments.get("sm_scale"),
        }
        repair.say(kernel, {**sizes, **other}, f"the template's reference does not know {_describe(other)}")


def _paged_decode(repair: Repair) -> None:
    _paged(repair, "gqa_paged_decode", has_mask=False)


def _paged_prefill(repair: Repair) -> None:
    _paged(repair, "gqa_paged_prefill", has_mask=True)


def _ragged(repair: Repair) -> None:
    _fill_plan(repair, qo_indptr=("_qo_indptr_buf",), kv_indptr=("_kv_indptr_buf",))
    query, keys, values = _take(repair, "q", "k", "v")
    if not all(_is_tensor(item) and item.ndim == 3 for item in (query, keys, values)):
        return
    other = _semantics(repair, has_mask=True)
    wide, narrow = query.shape[2], values.shape[2]
    scale = repair.arguments.get("sm_scale")
    if wide != narrow and query.shape[1] == keys.shape[1]:
        sizes = {"num_qo_heads": query.shape[1], "head_dim_qk": wide, "head_dim_vo": narrow, "sm_scale": scale}
        note = f"keys are {wide} wide, values and the output {narrow}"
        repair.say("mla_ragged_prefill", {**sizes, **other}, f"{note}; {_describe(other)}" if other else note)
    elif wide != narrow or other:
        sizes = {
            "num_qo_heads": query.shape[1],
            "num_kv_heads": keys.shape[1],
            "head_dim": wide,
            "head_dim_vo": narrow,
            "sm_scale": scale,
        }
        repair.say("gqa_ragged_prefill", {**sizes, **other}, f"the template does not know {_describe(other)}")


def _mla(repair: Repair) -> None:
    _fill_plan(repair, kv_indptr=("_kv_indptr_buf",), kv_indices=("_kv_indices_buf",))
    wrapper = repair.arguments.get("self")
    latent, rotary, cache = _take(repair, "q_nope", "q_pe", "ckv_cache")
    if not all(_is_tensor(item) and item.ndim == 3 for item in (latent, rotary, cache)):
        return
    offsets = _attribute(wrapper, "_qo_indptr_buf")
    causal = bool(getattr(wrapper, "_causal", False))
    is_decode = not causal and (not _is_tensor(offsets) or latent.shape[0] == offsets.shape[0] - 1)
    repair.parameters = {
        "num_qo_heads": latent.shape[1],
        "head_dim_ckv": latent.shape[2],
        "head_dim_kpe": rotary.shape[2],
        "page_size": cache.shape[1],
    }
    scale = repair.arguments.get("sm_scale")
    if scale is not None:
        repair.parameters["sm_scale"] = float(scale)
    fp8 = {"kv_dtype": _dtype(cache)} if _dtype(cache) in _FP8 else {}
    if is_decode and not fp8:
        repair.kernel = "mla_paged_decode"
    elif is_decode:
        repair.say("mla_paged_decode", fp8, f"the template's reference does not know {_describe(fp8)}")
    else:
        word = "causal" if causal else "not causal"
        repair.say("mla_paged_prefill", {"causal": causal, **fp8}, f"a prefill, {word}; the template knows decode only")


def _flatten(repair: Repair, *names: str) -> None:
    for name in names:
        value = repair.arguments.get(name)
        if _is_tensor(value) and value.ndim > 2:
            repair.arguments[name] = value.flatten(0, -2)
            repair.notes.append(f"{name} has {value.ndim} dimensions: rows of its last")


def _norm(kernel: str) -> Callable[[Repair], None]:
    def method(repair: Repair) -> None:
        _flatten(repair, "input", "residual")
        eps, weight = repair.arguments.get("eps"), repair.arguments.get("weight")
        is_other = isinstance(eps, float) and abs(eps - _TEMPLATE_EPS) > _TEMPLATE_EPS * 1e-3
        if is_other and _is_tensor(weight):
            sizes = {"hidden_size": weight.shape[-1], "eps": eps, "dtype": _dtype(weight)}
            repair.say(kernel, sizes, f"eps is {eps:g}, and {_TEMPLATE_EPS:g} in the template's reference")

    return method


def _top_k_top_p(repair: Repair) -> None:
    probs = repair.arguments.get("probs")
    if repair.arguments.get("filter_apply_order") == "joint" and _is_tensor(probs):
        sizes = {"vocab_size": probs.shape[-1], "filter_apply_order": "joint"}
        note = "both filters on the given probabilities; the template's reference filters by top-k first"
        repair.say("top_k_top_p_sampling_from_probs", sizes, note)


def _choice_of_experts(repair: Repair) -> None:
    """State the groups: numbers of the call that make another kernel, and no axes of the template."""
    scores, groups, kept, top_k = _take(repair, "scores", "n_group", "topk_group", "topk")
    if _is_tensor(scores) and all(isinstance(value, int) for value in (groups, kept, top_k)):
        sizes = {"num_experts": scores.shape[-1], "top_k": top_k, "n_group": groups, "topk_group": kept}
        note = f"the template does not tell {kept} groups of {groups}"
        repair.say("moe_routing", {**sizes, "routing": "ds", "norm_topk_prob": True}, note)


def _activation(repair: Repair) -> None:
    _flatten(repair, "input")


_METHODS: dict[str, Callable[[Repair], None]] = {
    "BatchDecodeWithPagedKVCacheWrapper.run": _paged_decode,
    "BatchPrefillWithPagedKVCacheWrapper.run": _paged_prefill,
    "BatchPrefillWithRaggedKVCacheWrapper.run": _ragged,
    "BatchMLAPagedAttentionWrapper.run": _mla,
}
_FUNCTIONS: dict[str, Callable[[Repair], None]] = {
    **{name: _norm(name) for name in ("rmsnorm", "fused_add_rmsnorm", "gemma_rmsnorm", "gemma_fused_add_rmsnorm")},
    "top_k_top_p_sampling_from_probs": _top_k_top_p,
    "fused_topk_deepseek": _choice_of_experts,
    "silu_and_mul": _activation,
    "gelu_and_mul": _activation,
    "gelu_tanh_and_mul": _activation,
}
