"""Needs of softmax attention over a paged KV cache, without latent compression."""

from __future__ import annotations

import math
from dataclasses import replace

from fib_tools.architecture.facts_schema import AttentionFacts, NormKind, QkNorm
from fib_tools.architecture.fusion import fuse_attention
from fib_tools.architecture.inventory_evidence import Claim, Sight
from fib_tools.architecture.inventory_linears import need_linears, rename
from fib_tools.architecture.inventory_needs import Site
from fib_tools.architecture.parallelism import cut_kv_heads, cut_query_heads
from fib_tools.architecture.structure_schema import OpKind
from fib_tools.model.kernel import ParameterValue

__all__ = ["find_kv_dtype", "need_attention"]

_PAGED = "KV cache in pages, a serving engine's own"
_RAGGED = "prefill without a cached prefix reads K and V as they come (SGLang flashinfer_backend.py)"
_MERGE = "prefill with a cached prefix: ragged over the new tokens, paged over the prefix, states merged"


def need_attention(site: Site, key: str, attention: AttentionFacts) -> None:
    """Note everything of one kind of attention layer: projections, QK-norm, RoPE, cache append, attention."""
    tp = site.point.attention_tp
    layers = site.layers_of(key)
    need_linears(site, fuse_attention(attention, site.facts, key=key, tp=tp), layers, tp=tp)
    heads = cut_query_heads(attention.num_heads, attention.num_kv_heads, tp)
    kv_heads = cut_kv_heads(attention.num_heads, attention.num_kv_heads, tp)
    norm_facts = (f"attentions.{key}.qk_norm", f"attentions.{key}.head_dim", "norm.eps")
    claim = Claim(module=site.path(rename(site, "self_attn")), layers=layers, tp=tp, facts=norm_facts)
    if attention.has_output_gate:
        gate = Sight(
            kind=OpKind.ACTIVATION,
            attributes=(("function", "sigmoid"), ("size", attention.num_heads * attention.v_head_dim)),
        )
        site.explain(gate, "the attention output is multiplied by the sigmoid of a gate, an elementwise operation")
    _need_qk_norm(site, attention, claim, widths=(heads, kv_heads))
    _need_rope(site, attention, claim, key=key)
    shape: dict[str, ParameterValue] = {
        "num_qo_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": attention.head_dim,
        "head_dim_vo": None if attention.v_head_dim == attention.head_dim else attention.v_head_dim,
        "window_left": attention.window_left,
        "logits_soft_cap": attention.softcap or 0.0,
        "sinks": attention.has_sinks,
        "sm_scale": find_scale(attention),
    }
    facts = (*_fact_keys(key), *(f"attentions.{key}.{name}" for name in ("window", "chunk", "softcap", "has_sinks")))
    sights = (_sight(attention),)
    _need_paged(site, attention, shape, replace(claim, facts=facts, sights=sights))
    _need_ragged(site, attention, shape, replace(claim, facts=facts, sights=sights))


def _fact_keys(key: str) -> tuple[str, ...]:
    return tuple(
        f"attentions.{key}.{name}" for name in ("num_heads", "num_kv_heads", "head_dim", "v_head_dim", "sm_scale")
    )


def _sight(attention: AttentionFacts) -> Sight:
    """Describe the call; a window that the facts drop, being as long as the context, is no difference."""
    shape = (("heads", attention.num_heads), ("kv_heads", attention.num_kv_heads), ("head_dim", attention.head_dim))
    limits = (("window", attention.window), ("chunk", attention.chunk))
    return Sight(kind=OpKind.ATTENTION, attributes=(*shape, *(limit for limit in limits if limit[1] is not None)))


def find_scale(attention: AttentionFacts) -> float | None:
    """Give the factor of the scores; None for the usual 1 / sqrt(head_dim)."""
    usual = 1.0 / math.sqrt(attention.head_dim)
    return None if math.isclose(attention.sm_scale, usual, rel_tol=1e-6) else attention.sm_scale


def find_kv_dtype(site: Site) -> str | None:
    """Give the dtype of the KV cache where the serving point sets one; None for that of the model."""
    word = site.point.kv_cache_dtype or ""
    if word.startswith("fp8"):
        return "float8_e5m2" if "e5m2" in word else "float8_e4m3fn"
    return None


def _need_paged(site: Site, attention: AttentionFacts, shape: dict[str, ParameterValue], claim: Claim) -> None:
    claim = replace(claim, engine=_PAGED)
    paged = {**shape, "kv_dtype": find_kv_dtype(site)}
    for page_size in site.page_sizes:
        cache: dict[str, ParameterValue] = {
            "num_kv_heads": shape["num_kv_heads"],
            "head_dim": attention.head_dim,
            "head_dim_vo": shape["head_dim_vo"],
            "page_size": page_size,
        }
        site.need("append_paged_kv_cache", cache, replace(claim, sights=()))
        decode = {**paged, "page_size": page_size}
        site.need("gqa_paged_decode", decode, replace(claim, stages=("decode",)))
        prefill: dict[str, ParameterValue] = {**decode, "causal": True, "chunk": attention.chunk}
        site.need("gqa_paged_prefill", prefill, replace(claim, stages=("prefill",)))
        if _is_mergeable(attention):
            prefix = {**prefill, "causal": False}
            site.need("gqa_paged_prefill", prefix, replace(claim, stages=("prefill",), sights=(), engine=_MERGE))


def _is_mergeable(attention: AttentionFacts) -> bool:
    """Tell whether a prefix can be attended to on its own, without knowing where the query stands."""
    return attention.window is None and attention.chunk is None and not attention.has_sinks


def _need_ragged(site: Site, attention: AttentionFacts, shape: dict[str, ParameterValue], claim: Claim) -> None:
    ragged: dict[str, ParameterValue] = {**shape, "causal": True, "chunk": attention.chunk}
    claim = replace(claim, stages=("prefill",))
    site.need("gqa_ragged_prefill", ragged, replace(claim, engine=_RAGGED))
    if _is_mergeable(attention):
        state: dict[str, ParameterValue] = {"num_heads": shape["num_qo_heads"], "head_dim": attention.v_head_dim}
        site.need("merge_state", state, replace(claim, engine=_MERGE, sights=()))


def _need_qk_norm(site: Site, attention: AttentionFacts, claim: Claim, *, widths: tuple[int, int]) -> None:
    norm = site.facts.norm
    if attention.qk_norm == QkNorm.NONE:
        return
    if attention.qk_norm == QkNorm.L2:
        sights = (Sight(kind=OpKind.NORM, attributes=(("size", attention.head_dim), ("kind", "rmsnorm_noweight"))),)
        parameters: dict[str, ParameterValue] = {"hidden_size": attention.head_dim, "eps": norm.eps}
        site.need("rmsnorm_noweight", parameters, replace(claim, sights=sights))
        return
    kernel = "gemma_rmsnorm" if norm.kind == NormKind.GEMMA_RMSNORM else "rmsnorm"
    is_full = attention.qk_norm == QkNorm.FULL
    for name, heads, total in (
        ("q_norm", widths[0], attention.num_heads),
        ("k_norm", widths[1], attention.num_kv_heads),
    ):
        seen = attention.head_dim * (total if is_full else 1)
        sight = Sight(kind=OpKind.NORM, attributes=(("size", seen), ("kind", kernel)))
        size = attention.head_dim * (heads if is_full else 1)
        module = f"{claim.module}.{name}"
        site.need(kernel, {"hidden_size": size, "eps": norm.eps}, replace(claim, module=module, sights=(sight,)))
    if is_full and claim.tp != 1:
        site.note("QK-norm over all heads: with TP the mean square is summed over GPUs, each normalises its own share")


def _need_rope(site: Site, attention: AttentionFacts, claim: Claim, *, key: str) -> None:
    """Note the rotation; head counts are variable axes of its kernel, so those of the whole model stand for all cuts."""
    rope = attention.rope
    if rope is None:
        return
    sight = Sight(kind=OpKind.ROPE, attributes=(("rotary_dim", rope.rotary_dim), ("is_neox", rope.is_neox)))
    parameters: dict[str, ParameterValue] = {
        "head_dim": rope.head_dim,
        "rotary_dim": rope.rotary_dim,
        "num_qo_heads": attention.num_heads,
        "num_kv_heads": attention.num_kv_heads,
        "is_neox": rope.is_neox,
    }
    facts = tuple(f"attentions.{key}.{name}" for name in ("rope.rotary_dim", "rope.theta", "head_dim"))
    module = f"{claim.module}.rotary_emb"
    site.need("rope_with_cos_sin_cache", parameters, replace(claim, module=module, facts=facts, sights=(sight,)))
