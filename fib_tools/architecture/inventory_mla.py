"""Needs of multi-head latent attention, dense and sparse (DeepSeek-V3, Kimi-K2; DeepSeek-V3.2, GLM-5)."""

from __future__ import annotations

from dataclasses import replace

from fib_tools.architecture.facts_schema import AttentionFacts, IndexerFacts, MlaFacts
from fib_tools.architecture.fusion import fuse_indexer, fuse_mla
from fib_tools.architecture.inventory_attention import find_kv_dtype
from fib_tools.architecture.inventory_evidence import Claim, Sight
from fib_tools.architecture.inventory_linears import need_linears
from fib_tools.architecture.inventory_needs import Site
from fib_tools.architecture.parallelism import cut_query_heads
from fib_tools.architecture.structure_schema import OpKind
from fib_tools.model.kernel import ParameterValue

__all__ = ["need_mla"]

_ABSORBED = "kv_b_proj is absorbed into queries and outputs, so that attention runs on the compressed cache"
_EXPANDED = "prefill without a cached prefix expands K and V with kv_b_proj"
_MERGED = "prefill with a cached prefix: chunks of it are attended to one by one and the states merged"
_INDEXER_EPS = 1e-6
"""SGLang's LayerNorm default, `sglang/srt/layers/layernorm.py:1019`; the config does not say."""


def need_mla(site: Site, key: str, attention: AttentionFacts, mla: MlaFacts) -> None:
    """Note everything of latent attention layers."""
    tp = site.point.attention_tp
    layers = site.layers_of(key)
    heads = cut_query_heads(attention.num_heads, attention.num_heads, tp)
    need_linears(site, fuse_mla(attention, mla, site.facts, key=key, tp=tp), layers, tp=tp)
    names = (
        "num_heads",
        "mla.kv_lora_rank",
        "mla.qk_rope_head_dim",
        "mla.qk_nope_head_dim",
        "mla.v_head_dim",
        "sm_scale",
    )
    facts = tuple(f"attentions.{key}.{name}" for name in names)
    claim = Claim(module=site.path("self_attn"), layers=layers, tp=tp, facts=facts)
    _need_norms(site, mla, claim)
    _need_absorption(site, mla, heads, claim)
    _need_rope(
        site,
        attention,
        replace(claim, facts=(f"attentions.{key}.mla.qk_rope_head_dim", f"attentions.{key}.rope.theta")),
    )
    _need_expanded(site, attention, heads, claim)
    if attention.indexer is not None:
        _need_indexer(site, attention, attention.indexer, claim)
        _need_sparse(site, attention, heads, claim)
    else:
        _need_paged(site, attention, heads, claim)
    for page_size in site.page_sizes:
        cache = {"head_dim_ckv": mla.kv_lora_rank, "head_dim_kpe": mla.qk_rope_head_dim, "page_size": page_size}
        site.need("append_paged_mla_kv_cache", cache, replace(claim, engine="latent KV cache in pages"))


def _need_norms(site: Site, mla: MlaFacts, claim: Claim) -> None:
    for name, size in (("q_a_layernorm", mla.q_lora_rank), ("kv_a_layernorm", mla.kv_lora_rank)):
        if size is not None:
            sight = Sight(kind=OpKind.NORM, attributes=(("size", size),))
            parameters: dict[str, ParameterValue] = {"hidden_size": size, "eps": site.facts.norm.eps}
            module = f"{claim.module}.{name}"
            site.need("rmsnorm", parameters, replace(claim, module=module, sights=(sight,), attribute=name))


def _need_absorption(site: Site, mla: MlaFacts, heads: int, claim: Claim) -> None:
    for name, n, k in (
        ("w_kc", mla.kv_lora_rank, mla.qk_nope_head_dim),
        ("w_vc", mla.v_head_dim, mla.kv_lora_rank),
    ):
        module = f"{claim.module}.{name}"
        site.need("bmm", {"b": heads, "n": n, "k": k}, replace(claim, module=module, engine=_ABSORBED))


def _need_rope(site: Site, attention: AttentionFacts, claim: Claim) -> None:
    rope = attention.rope
    if rope is None:
        return
    sight = Sight(kind=OpKind.ROPE, attributes=(("rotary_dim", rope.rotary_dim),))
    parameters: dict[str, ParameterValue] = {
        "head_dim": rope.head_dim,
        "rotary_dim": rope.rotary_dim,
        "num_qo_heads": attention.num_heads,
        "num_kv_heads": 1,
        "is_neox": rope.is_neox,
    }
    module = f"{claim.module}.rotary_emb"
    site.need("rope_with_cos_sin_cache", parameters, replace(claim, module=module, sights=(sight,)))


def _need_expanded(site: Site, attention: AttentionFacts, heads: int, claim: Claim) -> None:
    sight = Sight(kind=OpKind.ATTENTION, attributes=(("heads", attention.num_heads), ("head_dim", attention.head_dim)))
    ragged: dict[str, ParameterValue] = {
        "num_qo_heads": heads,
        "head_dim_qk": attention.head_dim,
        "head_dim_vo": attention.v_head_dim,
        "sm_scale": attention.sm_scale,
    }
    claim = replace(claim, stages=("prefill",))
    site.need("mla_ragged_prefill", {**ragged, "causal": True}, replace(claim, sights=(sight,), engine=_EXPANDED))
    site.need("mla_ragged_prefill", {**ragged, "causal": False}, replace(claim, engine=_MERGED))
    site.need("merge_state", {"num_heads": heads, "head_dim": attention.v_head_dim}, replace(claim, engine=_MERGED))


def _latent_shape(attention: AttentionFacts, heads: int, page_size: int) -> dict[str, ParameterValue]:
    mla = attention.mla
    return {
        "num_qo_heads": heads,
        "head_dim_ckv": mla.kv_lora_rank if mla else None,
        "head_dim_kpe": mla.qk_rope_head_dim if mla else None,
        "page_size": page_size,
        "sm_scale": attention.sm_scale,
    }


def _need_paged(site: Site, attention: AttentionFacts, heads: int, claim: Claim) -> None:
    claim = replace(claim, engine=_ABSORBED)
    for page_size in site.page_sizes:
        shape = {**_latent_shape(attention, heads, page_size), "kv_dtype": find_kv_dtype(site)}
        site.need("mla_paged_decode", shape, replace(claim, stages=("decode",)))
        site.need("mla_paged_prefill", {**shape, "causal": True}, replace(claim, stages=("prefill",)))


def _need_sparse(site: Site, attention: AttentionFacts, heads: int, claim: Claim) -> None:
    for page_size in site.page_sizes:
        shape = _latent_shape(attention, heads, page_size)
        topk = attention.indexer.topk if attention.indexer else None
        site.need("dsa_sparse_attention", {**shape, "topk": topk}, replace(claim, engine=_ABSORBED))


def _need_indexer(site: Site, attention: AttentionFacts, indexer: IndexerFacts, claim: Claim) -> None:
    key = next(key for key, value in site.facts.attentions.items() if value is attention)
    need_linears(site, fuse_indexer(attention, site.facts, key=key), claim.layers, tp=site.point.attention_tp)
    module = f"{claim.module}.indexer"
    facts = tuple(f"attentions.{key}.indexer.{name}" for name in ("num_heads", "head_dim", "topk"))
    claim = replace(claim, module=module, facts=facts)
    norm: dict[str, ParameterValue] = {"hidden_size": indexer.head_dim, "eps": _INDEXER_EPS, "bias": True}
    seen = Sight(kind=OpKind.NORM, attributes=(("kind", "layernorm"), ("size", indexer.head_dim)))
    site.need("layernorm", norm, replace(claim, module=f"{module}.k_norm", sights=(seen,)))
    rope: dict[str, ParameterValue] = {
        "head_dim": indexer.head_dim,
        "rotary_dim": attention.rope.rotary_dim if attention.rope else indexer.head_dim,
        "num_qo_heads": indexer.num_heads,
        "num_kv_heads": 1,
        "is_neox": indexer.is_neox,
    }
    site.need("rope_with_cos_sin_cache", rope, replace(claim, module=f"{module}.rotary_emb"))
    for page_size in site.page_sizes:
        shape: dict[str, ParameterValue] = {
            "num_index_heads": indexer.num_heads,
            "index_head_dim": indexer.head_dim,
            "topk": indexer.topk,
            "page_size": page_size,
        }
        engine = "the indexer is whole on every GPU and reads its own fp8 key cache"
        site.need("dsa_topk_indexer", shape, replace(claim, engine=engine))
    site.cover(module)
