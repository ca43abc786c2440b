"""Needs of DeepSeek-V4's attention: latent queries, one shared KV head, compressed entries beside a window.

Source: SGLang 0.5.23 `layers/attention/deepseek_v4_backend.py:4384`, `layers/attention/dsv4/compressor_v2.py:112`,
`layers/attention/dsv4/indexer.py:880`, `mem_cache/deepseek_v4_memory_pool.py:1582`.
"""

from __future__ import annotations

from dataclasses import replace

from fib_tools.architecture.facts_schema import AttentionFacts, IndexerFacts, MixerKind, OutputLoraFacts
from fib_tools.architecture.fusion_compressed import fuse_compressed
from fib_tools.architecture.inventory_evidence import Claim, Sight
from fib_tools.architecture.inventory_linears import need_linears
from fib_tools.architecture.inventory_needs import Site
from fib_tools.architecture.parallelism import cut_query_heads, cut_size
from fib_tools.architecture.structure_schema import OpKind
from fib_tools.model.kernel import ParameterValue

__all__ = ["need_compressed"]

_GROUPED = "the first half of the output projection is one small GEMM for each group of heads"
_BY_SLOT = "a window of tokens and compressed entries are read by slot, each from a paged cache of its own"
_POOLED = "compress_forward, sglang/srt/layers/attention/dsv4/compressor_v2.py:112"
_INDEXED = "the indexer is whole on every GPU and reads its own fp8 cache of compressed keys"
_PACKED = (
    "SGLang's FlashMLA caches of DeepSeek-V4 hold e4m3 values with scales and a bfloat16 rotary part; "
    "the attention kernels here read both in bfloat16"
)
_TRTLLM = (
    "SGLang's trtllm backend of DeepSeek-V4 calls FlashInfer's trtllm_batch_decode_sparse_mla_dsv4 "
    "(sglang/srt/layers/attention/deepseek_v4_trtllm_backend.py:357), which the search for call sites leaves out, "
    "as the API is not traced"
)
_FUSED_STORE = "SGLang norms, rotates and stores a compressed entry in one kernel (compress_norm_rope_store)"
_HADAMARD = (
    "SGLang turns index queries and keys by a Hadamard matrix before it makes them fp8, which leaves their products "
    "as they are and has no kernel type"
)


def need_compressed(site: Site, key: str, attention: AttentionFacts, output: OutputLoraFacts) -> None:
    """Note everything of DeepSeek-V4's attention layers of one kind."""
    tp = site.point.attention_tp
    layers = site.layers_of(key)
    heads = cut_query_heads(attention.num_heads, attention.num_heads, tp)
    need_linears(site, fuse_compressed(attention, output, site.facts, key=key, tp=tp), layers, tp=tp)
    facts = _facts(key, "num_heads", "head_dim", "q_lora_rank", "output_lora.groups", "output_lora.rank")
    claim = Claim(module=site.path("self_attn"), layers=layers, tp=tp, facts=facts)
    grouped: dict[str, ParameterValue] = {
        "b": cut_size(output.groups, tp, what="o_groups"),
        "n": output.rank,
        "k": attention.num_heads * attention.head_dim // output.groups,
    }
    site.need("bmm", grouped, replace(claim, module=f"{claim.module}.wo_a", engine=_GROUPED, attribute="wo_a"))
    _need_norms(site, attention, claim)
    _need_rope(site, attention, claim)
    seen = _facts(key, "num_heads", "head_dim", "window", "has_sinks", "sm_scale", "compress_rate", "indexer.topk")
    _need_attention(site, attention, heads, replace(claim, facts=seen))
    if attention.compress_rate is not None:
        rate = (*_facts(key, "compress_rate", "head_dim"), "layers")
        compressor = replace(claim, module=f"{claim.module}.compressor", facts=rate)
        _need_compressor(site, attention, attention.head_dim, compressor)
        site.cover(compressor.module)
    if attention.indexer is not None:
        sizes = _facts(key, "indexer.num_heads", "indexer.head_dim", "indexer.topk")
        indexer = replace(claim, module=f"{claim.module}.indexer", facts=sizes)
        _need_indexer(site, attention, attention.indexer, indexer)


def _facts(key: str, *names: str) -> tuple[str, ...]:
    return tuple(f"attentions.{key}.{name}" for name in names)


def _entries_per_page(attention: AttentionFacts, page_size: int) -> int:
    """A page of compressed entries belongs to a page of tokens."""
    return max(page_size // (attention.compress_rate or 1), 1)


def _need_attention(site: Site, attention: AttentionFacts, heads: int, claim: Claim) -> None:
    if attention.window is None or not attention.has_sinks:
        site.leave_unexplained("attention", claim.module, "no kernel type shares a KV head without a window and sinks")
        return
    sizes = (("heads", attention.num_heads), ("head_dim", attention.head_dim), ("window", attention.window))
    seen = replace(claim, sights=(Sight(kind=OpKind.ATTENTION, attributes=sizes),), engine=_BY_SLOT)
    for page_size in site.page_sizes:
        shape: dict[str, ParameterValue] = {
            "num_qo_heads": heads,
            "head_dim": attention.head_dim,
            "window": attention.window,
            "page_size": page_size,
            "sm_scale": attention.sm_scale,
        }
        if attention.compress_rate is None:
            site.need("dsv4_window_attention", shape, seen)
            continue
        shape["topk"] = attention.indexer.topk if attention.indexer else None
        shape["compressed_page_size"] = _entries_per_page(attention, page_size)
        site.need("dsv4_compressed_attention", shape, seen)
    site.note(_PACKED)
    site.note(_TRTLLM)


def _need_compressor(site: Site, attention: AttentionFacts, head_dim: int, claim: Claim) -> None:
    """Note the pooling of windows and the norm of what comes of it; windows overlap where an indexer chooses."""
    pooling: dict[str, ParameterValue] = {
        "head_dim": head_dim,
        "compress_rate": attention.compress_rate,
        "overlap": attention.kind == MixerKind.COMPRESSED_SPARSE,
    }
    pooled = Sight(kind=OpKind.MIXING, attributes=(("function", "softmax"), ("width", head_dim)))
    site.need("kv_compress", pooling, replace(claim, sights=(pooled,), engine=_POOLED))
    norm: dict[str, ParameterValue] = {"hidden_size": head_dim, "eps": site.facts.norm.eps}
    seen = Sight(kind=OpKind.NORM, attributes=(("kind", "rmsnorm"), ("size", head_dim)))
    site.need("rmsnorm", norm, replace(claim, module=f"{claim.module}.norm", sights=(seen,)))
    site.note(_FUSED_STORE)


def _need_indexer(site: Site, attention: AttentionFacts, indexer: IndexerFacts, claim: Claim) -> None:
    _need_compressor(site, attention, indexer.head_dim, replace(claim, module=f"{claim.module}.compressor"))
    if attention.rope is not None:
        _need_rotation(site, attention, indexer.num_heads, replace(claim, module=f"{claim.module}.rotary_emb"))
    seen = Sight(kind=OpKind.SPARSE_INDEX, attributes=(("head_dim", indexer.head_dim),))
    for page_size in site.page_sizes:
        shape: dict[str, ParameterValue] = {
            "num_index_heads": indexer.num_heads,
            "index_head_dim": indexer.head_dim,
            "topk": indexer.topk,
            "page_size": _entries_per_page(attention, page_size),
        }
        site.need("dsa_topk_indexer", shape, replace(claim, sights=(seen,), engine=_INDEXED))
    site.note(_HADAMARD)


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
    if attention.rope is not None:
        module = f"{claim.module}.rotary_emb"
        _need_rotation(site, attention, attention.num_heads, replace(claim, module=module))


def _need_rotation(site: Site, attention: AttentionFacts, heads: int, claim: Claim) -> None:
    rope = attention.rope
    if rope is None:
        return
    sight = Sight(kind=OpKind.ROPE, attributes=(("rotary_dim", rope.rotary_dim),))
    parameters: dict[str, ParameterValue] = {
        "head_dim": rope.rotary_dim,
        "rotary_dim": rope.rotary_dim,
        "num_qo_heads": heads,
        "num_kv_heads": 1,
        "is_neox": rope.is_neox,
    }
    site.need("rope_with_cos_sin_cache", parameters, replace(claim, sights=(sight,)))
