"""SGLang's fusion of linear layers: which weights of a checkpoint become one GEMM, how it is cut, and its local size.

The rules are those of SGLang 0.5.23's `models/`; each use is confirmed with the line of the model's own file where the
layer is made. Roles are the words of `structure_schema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from fib_tools.architecture.facts_schema import AttentionFacts, MlaFacts, ModelFacts, MoeFacts
from fib_tools.architecture.parallelism import cut_kv_heads, cut_query_heads, cut_size

__all__ = [
    "Cut",
    "FusedLinear",
    "LinearPart",
    "column",
    "fuse_attention",
    "fuse_indexer",
    "fuse_mla",
    "fuse_mlp",
    "fuse_router",
    "fuse_shared_experts",
    "replicated",
    "row",
]


class Cut(str, Enum):
    """How a linear layer is spread over GPUs."""

    COLUMN = "column"
    ROW = "row"
    REPLICATED = "replicated"


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearPart:
    """One weight of the checkpoint inside a fused linear layer."""

    path: str
    """Under the layer, in Hugging Face's naming, such as `self_attn.q_proj`; where SGLang stacks it."""
    role: str
    """The role that the trace gives it."""
    total: int
    """Rows in the checkpoint."""
    local: int
    """Rows on one GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedLinear:
    """One GEMM of the engine: the output rows of its parts stacked, on one GPU."""

    name: str
    """The attribute in SGLang, such as `qkv_proj`."""
    parts: tuple[LinearPart, ...]
    total_k: int
    k: int
    cut: Cut
    bias: bool = False
    facts: tuple[str, ...] = ()
    """The facts its sizes follow from, as keys of `ModelFacts.provenance`."""
    is_quantizable: bool = True
    """False where SGLang passes no quantisation, whatever the checkpoint says."""
    checks_blocks: bool = True
    """False where SGLang skips the check of fp8 block shapes."""
    stages: tuple[str, ...] = ()
    splits: tuple[int, ...] = ()
    """Row counts by which transformers may hold the same weights, apart from the parts and their sum."""

    @property
    def n(self) -> int:
        """Rows of the GEMM on one GPU."""
        return sum(part.local for part in self.parts)

    @property
    def total_n(self) -> int:
        """Rows of its parts in the checkpoint."""
        return sum(part.total for part in self.parts)

    @property
    def is_cut(self) -> bool:
        """True when one GPU holds less than all of it."""
        return (self.n, self.k) != (self.total_n, self.total_k)


_UNFUSED_QKV_A: Mapping[str, str] = {
    "minicpm3": "sglang/srt/models/minicpm3.py:131 makes q_a_proj and kv_a_proj_with_mqa apart",
}
"""MLA models whose a-projections SGLang keeps apart."""

_UNCHECKED_BLOCKS: Mapping[str, str] = {
    "mimo_v2_flash": "sglang/srt/models/mimo_v2.py:724 passes skip_block_quant_check (key heads of 192)",
}
"""Models whose qkv_proj may be cut inside an fp8 block."""


def column(name: str, parts: tuple[tuple[str, str, int], ...], k: int, *, tp: int) -> FusedLinear:
    """Stack parts (path, role, rows) whose rows are spread over the GPUs."""
    cut = tuple(
        LinearPart(path=path, role=role, total=rows, local=cut_size(rows, tp, what=f"{name} rows"))
        for path, role, rows in parts
    )
    return FusedLinear(name=name, parts=cut, total_k=k, k=k, cut=Cut.COLUMN)


def row(name: str, part: tuple[str, str, int], k: int, *, tp: int) -> FusedLinear:
    """Spread the input width of one part (path, role, rows) over the GPUs; the partial sums are reduced afterwards."""
    path, role, rows = part
    whole = LinearPart(path=path, role=role, total=rows, local=rows)
    return FusedLinear(name=name, parts=(whole,), total_k=k, k=cut_size(k, tp, what=f"{name} width"), cut=Cut.ROW)


def replicated(name: str, parts: tuple[tuple[str, str, int], ...], k: int) -> FusedLinear:
    """Stack parts (path, role, rows) that every GPU holds whole."""
    whole = tuple(LinearPart(path=path, role=role, total=rows, local=rows) for path, role, rows in parts)
    return FusedLinear(name=name, parts=whole, total_k=k, k=k, cut=Cut.REPLICATED)


def fuse_attention(attention: AttentionFacts, facts: ModelFacts, *, key: str, tp: int) -> tuple[FusedLinear, ...]:
    """Give qkv_proj and o_proj; KV heads are replicated past their number, an output gate doubles the query part."""
    heads = cut_query_heads(attention.num_heads, attention.num_kv_heads, tp)
    kv_heads = cut_kv_heads(attention.num_heads, attention.num_kv_heads, tp)
    q_width = attention.head_dim * (2 if attention.has_output_gate else 1)
    k_width, v_width = attention.head_dim, attention.v_head_dim
    total_kv = attention.num_kv_heads
    parts = (
        LinearPart(path="self_attn.q_proj", role="q", total=attention.num_heads * q_width, local=heads * q_width),
        LinearPart(path="self_attn.k_proj", role="k", total=total_kv * k_width, local=kv_heads * k_width),
        LinearPart(path="self_attn.v_proj", role="v", total=total_kv * v_width, local=kv_heads * v_width),
    )
    sizes = (*(f"attentions.{key}.{name}" for name in ("num_heads", "num_kv_heads", "head_dim")), "hidden_size")
    qkv = FusedLinear(
        name="qkv_proj",
        parts=parts,
        total_k=facts.hidden_size,
        k=facts.hidden_size,
        cut=Cut.COLUMN,
        bias=attention.qkv_bias,
        facts=sizes,
        checks_blocks=facts.model_type not in _UNCHECKED_BLOCKS,
    )
    output = row(
        "o_proj", ("self_attn.o_proj", "o", facts.hidden_size), attention.num_heads * attention.v_head_dim, tp=tp
    )
    return qkv, replace(output, bias=attention.output_bias, facts=sizes)


def fuse_mla(
    attention: AttentionFacts, mla: MlaFacts, facts: ModelFacts, *, key: str, tp: int
) -> tuple[FusedLinear, ...]:
    """Give the projections of latent attention; the a-projections are whole on every GPU and fused to one GEMM."""
    heads = attention.num_heads
    cut_query_heads(heads, heads, tp)
    kv_b_rows = heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    linears = (
        *_fuse_mla_queries(heads * mla.qk_head_dim, mla, facts, tp=tp),
        replace(
            column("kv_b_proj", (("self_attn.kv_b_proj", "kv_b", kv_b_rows),), mla.kv_lora_rank, tp=tp),
            stages=("prefill",),
        ),
        row("o_proj", ("self_attn.o_proj", "o", facts.hidden_size), heads * mla.v_head_dim, tp=tp),
    )
    fields = ("num_heads", "mla.q_lora_rank", "mla.kv_lora_rank", "mla.qk_nope_head_dim", "mla.qk_rope_head_dim")
    sizes = (*(f"attentions.{key}.{name}" for name in (*fields, "mla.v_head_dim")), "hidden_size")
    return tuple(replace(linear, facts=sizes) for linear in linears)


def _fuse_mla_queries(rows: int, mla: MlaFacts, facts: ModelFacts, *, tp: int) -> tuple[FusedLinear, ...]:
    kv_a = ("self_attn.kv_a_proj_with_mqa", "kv_a", mla.kv_lora_rank + mla.qk_rope_head_dim)
    if mla.q_lora_rank is None:
        return (
            column("q_proj", (("self_attn.q_proj", "q", rows),), facts.hidden_size, tp=tp),
            replicated("kv_a_proj_with_mqa", (kv_a,), facts.hidden_size),
        )
    q_a = ("self_attn.q_a_proj", "q_a", mla.q_lora_rank)
    q_b = column("q_b_proj", (("self_attn.q_b_proj", "q_b", rows),), mla.q_lora_rank, tp=tp)
    if facts.model_type in _UNFUSED_QKV_A:
        return (
            replicated("q_a_proj", (q_a,), facts.hidden_size),
            replicated("kv_a_proj_with_mqa", (kv_a,), facts.hidden_size),
            q_b,
        )
    return replicated("fused_qkv_a_proj_with_mqa", (q_a, kv_a), facts.hidden_size), q_b


def fuse_indexer(attention: AttentionFacts, facts: ModelFacts, *, key: str) -> tuple[FusedLinear, ...]:
    """Give the indexer's projections, whole on every GPU; its head weights stay unquantised."""
    indexer = attention.indexer
    rank = attention.mla.q_lora_rank if attention.mla else attention.q_lora_rank
    if indexer is None:
        return ()
    query_width = rank or facts.hidden_size
    linears = (
        replicated(
            "wq_b", (("self_attn.indexer.wq_b", "indexer_q", indexer.num_heads * indexer.head_dim),), query_width
        ),
        replicated("wk", (("self_attn.indexer.wk", "indexer_k", indexer.head_dim),), facts.hidden_size),
        replace(
            replicated(
                "weights_proj",
                (("self_attn.indexer.weights_proj", "indexer_weights", indexer.num_heads),),
                facts.hidden_size,
            ),
            is_quantizable=False,
        ),
    )
    sizes = (f"attentions.{key}.indexer.num_heads", f"attentions.{key}.indexer.head_dim", "hidden_size")
    return tuple(replace(linear, facts=sizes) for linear in linears)


def fuse_mlp(facts: ModelFacts, intermediate_size: int, *, tp: int) -> tuple[FusedLinear, ...]:
    """Give gate_up_proj (up_proj without a gate) and down_proj of a dense MLP."""
    linears = _fuse_feed_forward("mlp", facts.hidden_size, intermediate_size, is_gated=facts.mlp.is_gated, tp=tp)
    sizes = ("layers.intermediate_size", "hidden_size")
    return tuple(replace(linear, bias=facts.mlp.has_bias, facts=sizes) for linear in linears)


def fuse_shared_experts(moe: MoeFacts, facts: ModelFacts, *, tp: int) -> tuple[FusedLinear, ...]:
    """Give the shared experts as one MLP of their total width, and the gate that scales them where there is one."""
    if not moe.shared_intermediate_size:
        return ()
    linears = _fuse_feed_forward(
        "mlp.shared_experts", facts.hidden_size, moe.shared_intermediate_size, is_gated=moe.is_gated, tp=tp
    )
    if moe.has_shared_expert_gate:
        gate = replicated("shared_expert_gate", (("mlp.shared_expert_gate", "shared_gate", 1),), facts.hidden_size)
        linears = (*linears, replace(gate, is_quantizable=False))
    sizes = ("moe.shared_intermediate_size", "moe.num_shared_experts", "moe.intermediate_size", "hidden_size")
    return tuple(replace(linear, facts=sizes) for linear in linears)


def _fuse_feed_forward(
    path: str, hidden_size: int, intermediate_size: int, *, is_gated: bool, tp: int
) -> tuple[FusedLinear, ...]:
    up = (f"{path}.up_proj", "up", intermediate_size)
    first = (
        column("gate_up_proj", ((f"{path}.gate_proj", "gate", intermediate_size), up), hidden_size, tp=tp)
        if is_gated
        else column("up_proj", (up,), hidden_size, tp=tp)
    )
    return first, row("down_proj", (f"{path}.down_proj", "down", hidden_size), intermediate_size, tp=tp)


def fuse_router(moe: MoeFacts, facts: ModelFacts) -> FusedLinear:
    """Give the router, whole and unquantised on every GPU."""
    router = replicated("gate", (("mlp.gate", "router", moe.num_experts),), facts.hidden_size)
    sizes = ("moe.num_experts", "hidden_size")
    return replace(router, bias=moe.router_bias, is_quantizable=False, facts=sizes)
