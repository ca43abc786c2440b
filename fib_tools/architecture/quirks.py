"""Everything that is special about one model_type, as rows of data with their reason.

A row says what a config.json does not: which norm a family uses, whether its attention has an output gate,
which fields it leaves to the defaults of its class, and under which transformers class it can be traced.
Every value was read in the family's transformers or SGLang implementation.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fib_tools.architecture.facts_schema import MixerKind, NormKind, NormLayout, QkNorm
from fib_tools.model.base import Model, NonEmpty

__all__ = ["DEFAULT_EXCLUDED", "QUIRKS", "SHAPE_FIELDS", "Quirk", "find_quirk"]

WindowRule = Literal["always", "even", "pattern", "after_max_window_layers", "never"]


class Quirk(Model):
    """What a model_type means beyond its config's fields; the defaults describe Llama."""

    model_types: tuple[str, ...]
    reason: NonEmpty
    traced_as: str | None = None
    """The transformers model_type whose code computes the same, where there is no class of this name."""
    not_traceable: str | None = None
    """Why no transformers class computes this model."""
    defaults: dict[str, Any] = Field(default_factory=dict)
    """Fields that published configs of this family leave out."""
    norm: NormKind = NormKind.RMSNORM
    norm_layout: NormLayout = NormLayout.PRE
    norm_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    qk_norm_field: str | None = None
    """A boolean field that turns the QK-norm on and off."""
    qkv_bias: bool | None = None
    """None: by `attention_bias`."""
    output_bias: bool | None = None
    """None: by `attention_bias`."""
    has_output_gate: bool = False
    has_sinks: bool = False
    window_rule: WindowRule = "always"
    """Which layers `sliding_window` is for, where no list of layer kinds says so."""
    window_excludes_query: bool = False
    """`sliding_window` counts the tokens before the query, not the query itself."""
    linear_kind: MixerKind = MixerKind.GDN
    """What `linear_attention` in `layer_types` means."""
    has_rope: bool = True
    rope_on_sliding_only: bool = False
    is_neox: bool = True
    is_mlp_gated: bool = True
    routing: str | None = None
    """None: by scoring_func, topk_method and norm_topk_prob."""
    has_correction_bias: bool | None = None
    """None: by `topk_method` and `use_routing_bias`."""
    router_bias: bool = False
    expert_bias: bool = False
    has_shared_expert_gate: bool = False
    activation: str | None = None
    """The experts' activation, where it is not `hidden_act`."""
    swiglu_alpha: float | None = None
    notes: tuple[str, ...] = ()


_DEEPSEEK_DEFAULTS: dict[str, Any] = {"norm_topk_prob": True, "first_k_dense_replace": 0}

QUIRKS: tuple[Quirk, ...] = (
    Quirk(model_types=("llama", "mistral", "mixtral", "ministral", "ministral3"), reason="the plain decoder"),
    Quirk(
        model_types=("phi3",),
        reason="one fused qkv_proj and gate_up_proj in the checkpoint",
        qkv_bias=False,
        output_bias=False,
    ),
    Quirk(
        model_types=("baichuan",),
        reason="Llama with a fused W_pack, and an lm_head that is normalised once at load",
        traced_as="llama",
        notes=("the lm_head rows are L2-normalised at load (NormHead); its GEMM is a plain one",),
    ),
    Quirk(
        model_types=("nemotron-nas",),
        reason="DeciLM: every layer has its own FFN width, some have no attention or no FFN",
        not_traceable="transformers has no DeciLM class; its code comes with the checkpoint and is never run",
    ),
    Quirk(
        model_types=("qwen2", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_vl", "qwen2_vl_text"),
        reason="bias on q, k and v only; the window starts after max_window_layers",
        qkv_bias=True,
        output_bias=False,
        window_rule="after_max_window_layers",
    ),
    Quirk(
        model_types=("qwen2_moe",),
        reason="as Qwen2, with shared experts behind a sigmoid gate",
        qkv_bias=True,
        output_bias=False,
        window_rule="after_max_window_layers",
        has_shared_expert_gate=True,
        defaults={"norm_topk_prob": False},
    ),
    Quirk(
        model_types=("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text"),
        reason="QK-norm on each head",
        qk_norm=QkNorm.PER_HEAD,
        window_rule="after_max_window_layers",
    ),
    Quirk(
        model_types=("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe"),
        reason="gated delta net layers; attention with QK-norm and an output gate; norms multiply by 1 + weight",
        norm=NormKind.GEMMA_RMSNORM,
        qk_norm=QkNorm.PER_HEAD,
        has_output_gate=True,
        has_shared_expert_gate=True,
        defaults={"norm_topk_prob": True, "partial_rotary_factor": 0.25, "full_attention_interval": 4},
        notes=("the output norm of the gated delta net is a plain gated RMSNorm, not a Gemma one",),
    ),
    Quirk(
        model_types=("gemma2",),
        reason="Gemma norms before and after each sublayer; even layers slide",
        norm=NormKind.GEMMA_RMSNORM,
        norm_layout=NormLayout.SANDWICH,
        window_rule="even",
        defaults={"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"},
    ),
    Quirk(
        model_types=("gemma3", "gemma3_text"),
        reason="Gemma norms before and after each sublayer, QK-norm; every sixth layer is full",
        norm=NormKind.GEMMA_RMSNORM,
        norm_layout=NormLayout.SANDWICH,
        qk_norm=QkNorm.PER_HEAD,
        window_rule="pattern",
        defaults={
            "tie_word_embeddings": True,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-6,
            "vocab_size": 262208,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window_pattern": 6,
            "max_position_embeddings": 131072,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
        },
    ),
    Quirk(
        model_types=("gemma",),
        reason="Gemma norms, the scale is 1/sqrt(head_dim)",
        norm=NormKind.GEMMA_RMSNORM,
        defaults={"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"},
    ),
    Quirk(model_types=("granite",), reason="multipliers on embedding, residual, scores and logits"),
    Quirk(
        model_types=("exaone4",),
        reason="norms after each sublayer, QK-norm, RoPE in the sliding layers only",
        norm_layout=NormLayout.POST,
        qk_norm=QkNorm.PER_HEAD,
        rope_on_sliding_only=True,
        window_rule="pattern",
    ),
    Quirk(
        model_types=("olmo2", "olmo3"),
        reason="norms after each sublayer, QK-norm over all heads at once",
        norm_layout=NormLayout.POST,
        qk_norm=QkNorm.FULL,
    ),
    Quirk(
        model_types=("llama4", "llama4_text"),
        reason="chunked attention with an L2 norm on q and k, every fourth layer full and without RoPE; top-1 sigmoid MoE",
        qk_norm=QkNorm.L2,
        qk_norm_field="use_qk_norm",
        is_neox=False,
        routing="llama4",
        defaults={"interleave_moe_layer_step": 1, "no_rope_layer_interval": 4, "n_shared_experts": 1},
        notes=(
            "the layers without RoPE scale queries with a temperature that grows with the position",
            "the router's weight multiplies the expert's input, not its output",
        ),
    ),
    Quirk(
        model_types=("phimoe",),
        reason="LayerNorm with bias, SparseMixer routing, a bias on the lm_head",
        norm=NormKind.LAYERNORM,
        norm_bias=True,
        routing="sparsemixer",
    ),
    Quirk(
        model_types=("gpt_oss",),
        reason="attention sinks, a bias everywhere, clamped SwiGLU with alpha 1.702",
        has_sinks=True,
        routing="renormalize",
        router_bias=True,
        expert_bias=True,
        activation="swiglu_oai",
        swiglu_alpha=1.702,
        defaults={"swiglu_limit": 7.0},
    ),
    Quirk(
        model_types=("deepseek_v2",),
        reason="MLA with interleaved RoPE; softmax routing, in groups for the large model",
        is_neox=False,
        defaults={"norm_topk_prob": False, "first_k_dense_replace": 0},
    ),
    Quirk(
        model_types=("deepseek_v3", "deepseek_v32"),
        reason="MLA with interleaved RoPE; sigmoid routing with a correction bias, in groups",
        is_neox=False,
        defaults=_DEEPSEEK_DEFAULTS,
    ),
    Quirk(
        model_types=("kimi_k2",),
        reason="DeepSeek-V3's code with other sizes",
        traced_as="deepseek_v3",
        is_neox=False,
        defaults=_DEEPSEEK_DEFAULTS,
    ),
    Quirk(
        model_types=("glm_moe_dsa", "glm4_moe_lite"),
        reason="DeepSeek-V3.2's (or V3's) code with other sizes",
        is_neox=False,
        has_correction_bias=True,
        defaults=_DEEPSEEK_DEFAULTS,
    ),
    Quirk(
        model_types=("deepseek_v4",),
        reason="one KV head that is key and value, compressed entries beside a window, hyper-connections",
        has_sinks=True,
        is_neox=False,
        routing="sqrtsoftplus_bias",
        has_correction_bias=True,
        qk_norm=QkNorm.PER_HEAD,
        defaults={"norm_topk_prob": True},
        notes=(
            "the query norm has no weight, the KV norm has one",
            "RoPE turns the last qk_rope_head_dim values of a head, and is undone on the attention output",
        ),
    ),
    Quirk(
        model_types=("minicpm3",),
        reason="MLA with rotate-half RoPE and scaled residuals",
        defaults={"tie_word_embeddings": True},
        notes=("embedding, residual and logits are scaled by scale_emb, scale_depth and dim_model_base",),
    ),
    Quirk(
        model_types=("mimo_v2_flash",),
        reason="full and sliding layers with other head counts; sinks in the sliding ones; keys wider than values",
        has_correction_bias=True,
        output_bias=False,
        window_excludes_query=True,
        notes=("values are multiplied by attention_value_scale",),
    ),
    Quirk(
        model_types=("minimax_m2",),
        reason="QK-norm over all heads at once; sigmoid routing with a bias, no groups; all layers MoE",
        qk_norm=QkNorm.FULL,
        qk_norm_field="use_qk_norm",
        qkv_bias=False,
        output_bias=False,
        has_correction_bias=True,
        defaults={"norm_topk_prob": True},
    ),
    Quirk(
        model_types=("minimax",),
        reason="lightning attention in most layers",
        linear_kind=MixerKind.LIGHTNING,
        routing="renormalize",
    ),
    Quirk(
        model_types=("glm4_moe",),
        reason="sigmoid routing with a correction bias; bias on q, k and v; QK-norm by a field",
        qk_norm=QkNorm.PER_HEAD,
        qk_norm_field="use_qk_norm",
        output_bias=False,
        has_correction_bias=True,
        defaults={"norm_topk_prob": True, "use_qk_norm": False},
    ),
    Quirk(
        model_types=("nemotron_h",),
        reason="one sublayer a layer (Mamba2, attention without RoPE, MLP or MoE); squared ReLU without a gate",
        norm_layout=NormLayout.SINGLE,
        has_rope=False,
        is_mlp_gated=False,
        has_correction_bias=True,
        defaults={"norm_topk_prob": True, "mlp_hidden_act": "relu2"},
    ),
    Quirk(
        model_types=("kimi_linear",),
        reason="KDA layers, and MLA layers without RoPE",
        linear_kind=MixerKind.KDA,
        has_rope=False,
        has_correction_bias=True,
        defaults={"norm_topk_prob": True, "routed_scaling_factor": 1.0},
    ),
)

SHAPE_FIELDS = frozenset(
    {
        "attention_chunk_size",
        "head_dim",
        "intermediate_size",
        "intermediate_size_mlp",
        "kv_lora_rank",
        "max_window_layers",
        "moe_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "n_group",
        "n_groups",
        "n_routed_experts",
        "n_shared_experts",
        "num_experts",
        "num_experts_per_tok",
        "num_key_value_heads",
        "num_local_experts",
        "q_lora_rank",
        "qk_head_dim",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "rope_theta",
        "rotary_dim",
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
        "sliding_window",
        "sliding_window_pattern",
        "sliding_window_size",
        "partial_rotary_factor",
        "v_head_dim",
    }
)
"""Fields that describe shapes somewhere; one of them that a model does not read is dead, and misleads readers."""

DEFAULT_EXCLUDED = ("lm_head", "embed_tokens", "gate", "router", "shared_expert_gate")
"""Modules that SGLang and the checkpoints leave in bf16 whatever the config says: heads, embeddings and routers."""


def find_quirk(model_type: str) -> Quirk | None:
    """Return the row of a model_type, or None for one that is not in the table."""
    return next((row for row in QUIRKS if model_type in row.model_types), None)
