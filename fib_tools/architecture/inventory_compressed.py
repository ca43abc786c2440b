"""Needs of DeepSeek-V4's attention: latent queries, one shared KV head, compressed entries beside a window."""

from __future__ import annotations

from dataclasses import replace

from fib_tools.architecture.facts_schema import AttentionFacts, OutputLoraFacts
from fib_tools.architecture.fusion_compressed import fuse_compressed
from fib_tools.architecture.inventory_evidence import Claim, Sight
from fib_tools.architecture.inventory_linears import need_linears
from fib_tools.architecture.inventory_needs import Site
from fib_tools.architecture.parallelism import cut_query_heads, cut_size
from fib_tools.architecture.structure_schema import OpKind
from fib_tools.model.kernel import ParameterValue

__all__ = ["need_compressed", "need_hyper_connections"]

_GROUPED = "the first half of the output projection is one small GEMM for each group of heads"


def need_compressed(site: Site, key: str, attention: AttentionFacts, output: OutputLoraFacts) -> None:
    """Note the projections, norms and RoPE of DeepSeek-V4; its attention itself has no kernel type."""
    tp = site.point.attention_tp
    layers = site.layers_of(key)
    cut_query_heads(attention.num_heads, attention.num_heads, tp)
    need_linears(site, fuse_compressed(attention, output, site.facts, key=key, tp=tp), layers, tp=tp)
    names = ("num_heads", "head_dim", "q_lora_rank", "output_lora.groups", "output_lora.rank")
    facts = tuple(f"attentions.{key}.{name}" for name in names)
    claim = Claim(module=site.path("self_attn"), layers=layers, tp=tp, facts=facts)
    grouped: dict[str, ParameterValue] = {
        "b": cut_size(output.groups, tp, what="o_groups"),
        "n": output.rank,
        "k": attention.num_heads * attention.head_dim // output.groups,
    }
    site.need("bmm", grouped, replace(claim, module=f"{claim.module}.wo_a", engine=_GROUPED, attribute="wo_a"))
    _need_norms(site, attention, claim)
    _need_rope(site, attention, claim)
    detail = f"{attention.kind.value} attention over a shared latent KV head has no kernel type"
    site.leave_unexplained("attention", claim.module, detail)
    site.book.sights.add(Sight(kind=OpKind.ATTENTION, attributes=(("head_dim", attention.head_dim),)))
    if attention.compress_rate is not None:
        module = f"{claim.module}.compressor"
        site.leave_unexplained("pooling", module, "compressing windows of keys to one entry has no kernel type")
        site.cover(module)


def need_hyper_connections(site: Site) -> None:
    """Name the mixing of residual streams, which no kernel type describes."""
    if site.facts.hyper_connections is None:
        return
    site.leave_unexplained("hyper-connection", site.path("attn_hc"), "mixing residual streams has no kernel type")
    site.book.sights.add(Sight(kind=OpKind.MIXING))
    for module in (site.path("attn_hc"), site.path("ffn_hc"), f"{site.prefix.rpartition('.')[0]}.hc_head"):
        site.cover(module)


def _need_norms(site: Site, attention: AttentionFacts, claim: Claim) -> None:
    eps = site.facts.norm.eps
    for kernel, name, size in (
        ("rmsnorm", "q_norm", attention.q_lora_rank),
        ("rmsnorm", "kv_norm", attention.head_dim),
        ("rmsnorm_noweight", "q_head_norm", attention.head_dim),
    ):
        if size is not None:
            sight = Sight(kind=OpKind.NORM, attributes=(("size", size),))
            named = replace(claim, module=f"{claim.module}.{name}", sights=(sight,))
            site.need(kernel, {"hidden_size": size, "eps": eps}, named)


def _need_rope(site: Site, attention: AttentionFacts, claim: Claim) -> None:
    rope = attention.rope
    if rope is None:
        return
    sight = Sight(kind=OpKind.ROPE, attributes=(("rotary_dim", rope.rotary_dim),))
    parameters: dict[str, ParameterValue] = {
        "head_dim": rope.rotary_dim,
        "rotary_dim": rope.rotary_dim,
        "num_qo_heads": attention.num_heads,
        "num_kv_heads": 1,
        "is_neox": rope.is_neox,
    }
    named = replace(claim, module=f"{claim.module}.rotary_emb", sights=(sight,))
    site.need("rope_with_cos_sin_cache", parameters, named)
