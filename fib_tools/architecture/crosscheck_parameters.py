"""Counting a model's parameters from its facts: one formula per part, to be compared with the real total."""

from __future__ import annotations

from fib_tools.architecture.facts_schema import (
    AttentionFacts,
    LayerFacts,
    LinearFacts,
    MixerKind,
    MlpKind,
    ModelFacts,
    MoeFacts,
    NormKind,
    NormLayout,
    QkNorm,
)

__all__ = ["count_parameters"]

_NORMS_OF_LAYOUT = {NormLayout.PRE: 2, NormLayout.POST: 2, NormLayout.SANDWICH: 4, NormLayout.SINGLE: 1}


def count_parameters(facts: ModelFacts) -> int | None:
    """Count the parameters of the text backbone, tied ones once; None where no formula covers the architecture."""
    kinds = {layer.mixer for layer in facts.layers}
    if facts.hyper_connections is not None or kinds & {MixerKind.KDA, MixerKind.LIGHTNING}:
        return None
    head = 0 if facts.tied_embeddings else facts.vocab_size * facts.hidden_size
    bias = facts.vocab_size if facts.lm_head_bias else 0
    layers = sum(_count_layer(facts, layer) for layer in facts.layers)
    return facts.vocab_size * facts.hidden_size + head + bias + _norm(facts, facts.hidden_size) + layers


def _norm(facts: ModelFacts, size: int) -> int:
    return 2 * size if facts.norm.kind is NormKind.LAYERNORM and facts.norm.has_bias else size


def _count_layer(facts: ModelFacts, layer: LayerFacts) -> int:
    norms = _NORMS_OF_LAYOUT[facts.norm.layout]
    if layer.mixer is MixerKind.NONE and layer.mlp is not MlpKind.NONE:
        norms = 1
    total = norms * _norm(facts, facts.hidden_size)
    if layer.attention in facts.attentions:
        total += _count_attention(facts.attentions[layer.attention or ""], facts.hidden_size)
    if layer.attention in facts.linears:
        total += _count_linear(facts.linears[layer.attention or ""], facts.hidden_size)
    if layer.mlp is MlpKind.DENSE and layer.intermediate_size is not None:
        total += _mlp(
            facts.hidden_size, layer.intermediate_size, is_gated=facts.mlp.is_gated, has_bias=facts.mlp.has_bias
        )
    if layer.mlp is MlpKind.MOE and facts.moe is not None:
        total += _count_moe(facts.moe, facts.hidden_size)
    return total


def _mlp(hidden: int, width: int, *, is_gated: bool, has_bias: bool) -> int:
    inputs = 2 if is_gated else 1
    return (inputs + 1) * hidden * width + (inputs * width + hidden if has_bias else 0)


def _count_attention(attention: AttentionFacts, hidden: int) -> int:
    if attention.mla is not None:
        return _count_mla(attention, hidden)
    q = attention.num_heads * attention.head_dim
    k = attention.num_kv_heads * attention.head_dim
    v = attention.num_kv_heads * attention.v_head_dim
    out = attention.num_heads * attention.v_head_dim
    total = hidden * (q * (2 if attention.has_output_gate else 1) + k + v) + out * hidden
    total += (q + k + v if attention.qkv_bias else 0) + (hidden if attention.output_bias else 0)
    total += {QkNorm.PER_HEAD: 2 * attention.head_dim, QkNorm.FULL: q + k}.get(attention.qk_norm, 0)
    return total + (attention.num_heads if attention.has_sinks else 0)


def _count_mla(attention: AttentionFacts, hidden: int) -> int:
    mla = attention.mla
    if mla is None:
        return 0
    heads, rank = attention.num_heads, mla.q_lora_rank
    q = hidden * heads * mla.qk_head_dim if rank is None else hidden * rank + rank + rank * heads * mla.qk_head_dim
    kv = hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim) + mla.kv_lora_rank
    kv += mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    total = q + kv + heads * mla.v_head_dim * hidden
    indexer = attention.indexer
    if indexer is not None and rank is not None:
        # Queries, keys, a LayerNorm with bias on the keys, and a weight for each head.
        total += rank * indexer.num_heads * indexer.head_dim + hidden * indexer.head_dim
        total += 2 * indexer.head_dim + hidden * indexer.num_heads
    return total


def _count_linear(linear: LinearFacts, hidden: int) -> int:
    channels, heads = linear.conv_channels, linear.num_value_heads
    conv = channels * linear.conv_width + (channels if linear.conv_bias else 0)
    out = linear.value_dim * hidden
    if linear.kind is MixerKind.GDN:
        # q, k, v, z; b and a; A_log and dt_bias; the output norm.
        inputs = hidden * (channels + linear.value_dim) + 2 * hidden * heads
        return inputs + conv + 2 * heads + linear.value_head_dim + out
    # Mamba2: z, x, B, C and dt; A_log, D and dt_bias; the output norm.
    inputs = hidden * (channels + linear.value_dim + heads)
    return inputs + conv + 3 * heads + linear.value_dim + out


def _count_moe(moe: MoeFacts, hidden: int) -> int:
    matrices = 3 if moe.is_gated else 2
    experts = moe.num_experts * matrices * hidden * moe.intermediate_size
    if moe.expert_bias:
        experts += moe.num_experts * ((matrices - 1) * moe.intermediate_size + hidden)
    router = hidden * moe.num_experts + (moe.num_experts if moe.router_bias else 0)
    shared = matrices * hidden * moe.shared_intermediate_size
    return experts + router + shared + (hidden if moe.has_shared_expert_gate else 0)
