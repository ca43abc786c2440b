"""SGLang's fusion of the projections of DeepSeek-V4's attention, whose one KV head is shared and whose output is low-rank.

Source: SGLang 0.5.23 `models/deepseek_v4.py:1095-1165`, `layers/attention/dsv4/compressor.py:68`, `dsv4/indexer.py:1178`.
"""

from __future__ import annotations

from dataclasses import replace

from fib_tools.architecture.facts_schema import AttentionFacts, MixerKind, ModelFacts, OutputLoraFacts
from fib_tools.architecture.fusion import FusedLinear, column, replicated, row

__all__ = ["fuse_compressed"]

_OVERLAPPING = MixerKind.COMPRESSED_SPARSE
"""Its windows of compression overlap, which doubles the compressor's width."""


def fuse_compressed(
    attention: AttentionFacts, output: OutputLoraFacts, facts: ModelFacts, *, key: str, tp: int
) -> tuple[FusedLinear, ...]:
    """Give the projections that are plain GEMMs; the grouped first half of the output projection is a batched one."""
    hidden, rank = facts.hidden_size, attention.q_lora_rank or facts.hidden_size
    rows = attention.num_heads * attention.head_dim
    a_parts = (("self_attn.wq_a", "q_a", rank), ("self_attn.wkv", "kv_a", attention.head_dim))
    linears = (
        replicated("wqkv_a", a_parts, hidden),
        column("wq_b", (("self_attn.wq_b", "q_b", rows),), rank, tp=tp),
        row("wo_b", ("self_attn.wo_b", "o", hidden), output.groups * output.rank, tp=tp),
        *_fuse_compressors(attention, hidden),
        *_fuse_indexer(attention, hidden, rank),
    )
    names = ("num_heads", "head_dim", "q_lora_rank", "output_lora.groups", "output_lora.rank", "compress_rate")
    sizes = (*(f"attentions.{key}.{name}" for name in names), "hidden_size")
    return tuple(replace(linear, facts=sizes) for linear in linears)


def _fuse_compressors(attention: AttentionFacts, hidden: int) -> tuple[FusedLinear, ...]:
    if attention.compress_rate is None:
        return ()
    widths = [("self_attn.compressor", attention.head_dim)]
    if attention.indexer is not None:
        widths.append(("self_attn.indexer.compressor", attention.indexer.head_dim))
    folds = 2 if attention.kind == _OVERLAPPING else 1
    return tuple(
        replace(
            replicated("wkv_gate", ((f"{path}.wkv_gate", "compressor", 2 * folds * width),), hidden),
            splits=(folds * width,),
            is_quantizable=False,
        )
        for path, width in widths
    )


def _fuse_indexer(attention: AttentionFacts, hidden: int, rank: int) -> tuple[FusedLinear, ...]:
    indexer = attention.indexer
    if indexer is None:
        return ()
    rows = indexer.num_heads * indexer.head_dim
    weights = replicated("weights_proj", (("self_attn.indexer.weights_proj", "indexer_w", indexer.num_heads),), hidden)
    return (
        replicated("wq_b", (("self_attn.indexer.wq_b", "indexer_q", rows),), rank),
        replace(weights, is_quantizable=False),
    )
