"""The facts of a model that its config.json states, in one shape for every architecture."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field

from fib_tools.architecture.quantization import QuantizationFacts
from fib_tools.model.base import Model, NonEmpty, NonNegative

__all__ = [
    "AttentionFacts",
    "HyperConnectionFacts",
    "IndexerFacts",
    "LayerFacts",
    "LinearFacts",
    "MixerKind",
    "MlaFacts",
    "MlpFacts",
    "MlpKind",
    "ModelFacts",
    "MoeFacts",
    "NormFacts",
    "NormKind",
    "NormLayout",
    "OutputLoraFacts",
    "QkNorm",
    "RopeFacts",
]

PositiveInt = Annotated[int, Field(ge=1)]


class MixerKind(str, Enum):
    """What mixes the tokens of a layer."""

    FULL = "full"
    SLIDING = "sliding"
    CHUNKED = "chunked"
    COMPRESSED_SPARSE = "compressed_sparse"
    """DeepSeek-V4: a window, and the top k of compressed entries."""
    COMPRESSED_HEAVY = "compressed_heavy"
    """DeepSeek-V4: a window, and all of few compressed entries."""
    GDN = "gdn"
    KDA = "kda"
    MAMBA2 = "mamba2"
    LIGHTNING = "lightning"
    NONE = "none"

    @property
    def is_attention(self) -> bool:
        """True for every softmax attention."""
        return self not in (self.GDN, self.KDA, self.MAMBA2, self.LIGHTNING, self.NONE)

    @property
    def is_linear(self) -> bool:
        """True for attention with a recurrent state."""
        return self in (self.GDN, self.KDA, self.MAMBA2, self.LIGHTNING)


class MlpKind(str, Enum):
    """What follows the mixer in a layer."""

    DENSE = "dense"
    MOE = "moe"
    NONE = "none"


class QkNorm(str, Enum):
    """The norm on queries and keys."""

    NONE = "none"
    PER_HEAD = "per_head"
    """A norm with a weight of head_dim, on each head."""
    FULL = "full"
    """A norm with a weight of heads times head_dim, on all heads at once."""
    L2 = "l2"
    """A norm without a weight, on each head, after RoPE (Llama-4)."""


class NormKind(str, Enum):
    """The mathematics of the hidden-state norms."""

    RMSNORM = "rmsnorm"
    GEMMA_RMSNORM = "gemma_rmsnorm"
    """An RMS norm that multiplies by 1 + weight."""
    LAYERNORM = "layernorm"


class NormLayout(str, Enum):
    """Where the norms of a layer stand."""

    PRE = "pre"
    """Before mixer and MLP."""
    POST = "post"
    """After mixer and MLP, before the residual add (EXAONE-4, OLMo-2)."""
    SANDWICH = "sandwich"
    """Before and after both (Gemma-2, Gemma-3)."""
    SINGLE = "single"
    """One before the only sublayer of the layer (Nemotron-H)."""


class RopeFacts(Model):
    """Rotary position embedding of one kind of layer."""

    theta: float
    rotary_dim: PositiveInt
    head_dim: PositiveInt
    """The width of the vectors it is applied to; for MLA that is qk_rope_head_dim."""
    is_neox: bool = True
    """True: first half against second half; False: even against odd (GPT-J)."""
    scaling: str = "none"
    """`none`, `linear`, `dynamic`, `yarn`, `llama3`, `longrope`, `mrope`."""
    factor: float | None = None
    attention_factor: float = 1.0
    """What cos and sin are multiplied by (YaRN's mscale ratio)."""


class MlaFacts(Model):
    """Multi-head latent attention."""

    q_lora_rank: int | None
    """None: queries are projected directly."""
    kv_lora_rank: PositiveInt
    """Also the width of the compressed KV cache (ckv)."""
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    """Also the width of the cache's rope part (kpe)."""
    v_head_dim: PositiveInt

    @property
    def qk_head_dim(self) -> int:
        """The width of an expanded query or key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


class IndexerFacts(Model):
    """The lightning indexer that picks the tokens of sparse attention."""

    num_heads: PositiveInt
    head_dim: PositiveInt
    topk: PositiveInt
    is_neox: bool = True


class OutputLoraFacts(Model):
    """A grouped, low-rank output projection (DeepSeek-V4)."""

    groups: PositiveInt
    rank: PositiveInt


class AttentionFacts(Model):
    """The softmax attention of one kind of layer."""

    kind: MixerKind
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    """Width of a query and key head; for MLA the expanded one, nope + rope."""
    v_head_dim: PositiveInt
    sm_scale: float
    """What the scores are multiplied by, YaRN's mscale² of MLA included."""
    window: int | None = None
    """Tokens a query sees, its own included (FlashInfer's window_left is one less)."""
    chunk: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    qkv_bias: bool = False
    output_bias: bool = False
    has_output_gate: bool = False
    rope: RopeFacts | None = None
    """None: no position embedding (NoPE)."""
    compress_rate: int | None = None
    """Tokens that share one compressed entry (DeepSeek-V4)."""
    mla: MlaFacts | None = None
    indexer: IndexerFacts | None = None
    output_lora: OutputLoraFacts | None = None
    q_lora_rank: int | None = None
    """A low-rank query projection without MLA (DeepSeek-V4)."""

    @property
    def window_left(self) -> int:
        """The window as FlashInfer counts it; -1 without one."""
        return -1 if self.window is None else self.window - 1


class LinearFacts(Model):
    """The linear attention of one kind of layer."""

    kind: MixerKind
    num_key_heads: PositiveInt
    """Query and key heads of GDN and KDA; groups of Mamba2."""
    num_value_heads: PositiveInt
    """Value heads of GDN and KDA; heads of Mamba2."""
    key_head_dim: PositiveInt
    """Width of a key; Mamba2's state size."""
    value_head_dim: PositiveInt
    """Width of a value; Mamba2's head dim."""
    conv_width: int = 0
    """0: no short convolution."""
    conv_bias: bool = False
    conv_activation: str = "silu"
    chunk_size: int | None = None
    use_qk_l2norm: bool = True
    has_projection_bias: bool = False
    norm_group_size: int | None = None
    """Width that the gated output norm is taken over; None: all of it."""
    norm_before_gate: bool = True

    @property
    def key_dim(self) -> int:
        """Width of all keys."""
        return self.num_key_heads * self.key_head_dim

    @property
    def value_dim(self) -> int:
        """Width of all values."""
        return self.num_value_heads * self.value_head_dim

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution: queries and keys (Mamba2's B and C), and values."""
        return 2 * self.key_dim + self.value_dim


class MlpFacts(Model):
    """The dense MLPs; the width is a fact of the layer."""

    activation: NonEmpty
    """The config's word: `silu`, `gelu_pytorch_tanh`, `relu2`."""
    is_gated: bool = True
    has_bias: bool = False


class MoeFacts(Model):
    """The mixture of experts; one kind a model."""

    num_experts: PositiveInt
    top_k: PositiveInt
    intermediate_size: PositiveInt
    """Width of one routed expert."""
    routing: NonEmpty
    """`default`, `renormalize`, `ds`, `sigmoid_bias`, `softmax_group`, `llama4`, `sparsemixer`, `sqrtsoftplus_bias`, ..."""
    n_group: int | None = None
    topk_group: int | None = None
    routed_scaling_factor: float | None = None
    norm_topk_prob: bool = True
    has_correction_bias: bool = False
    """A bias that moves the choice of experts but not their weights."""
    router_bias: bool = False
    expert_bias: bool = False
    activation: NonEmpty = "silu"
    """As in MlpFacts, or `swiglu_oai`."""
    is_gated: bool = True
    swiglu_limit: float | None = None
    swiglu_alpha: float | None = None
    num_shared_experts: int = 0
    shared_intermediate_size: int = 0
    """Width of all shared experts together, as they are computed."""
    has_shared_expert_gate: bool = False
    num_hash_layers: int = 0
    """Leading MoE layers that look the experts up by token id (DeepSeek-V4)."""


class NormFacts(Model):
    """The norms of the hidden state."""

    kind: NormKind
    eps: float
    layout: NormLayout
    has_bias: bool = False


class HyperConnectionFacts(Model):
    """Manifold-constrained hyper-connections in place of the residual (DeepSeek-V4)."""

    streams: PositiveInt
    sinkhorn_iterations: PositiveInt
    eps: float = 1e-6
    """Added to the weights of streams and to the sums of Sinkhorn's iteration."""


class LayerFacts(Model):
    """One layer."""

    index: NonNegative
    mixer: MixerKind
    attention: str | None = None
    """Key into `ModelFacts.attentions`, or into `ModelFacts.linears` for linear attention; None without a mixer."""
    mlp: MlpKind
    intermediate_size: int | None = None
    """Width of a dense MLP; None without one."""


class ModelFacts(Model):
    """What a config says about the text backbone of a model."""

    name: NonEmpty
    """The repository or slug it was read for."""
    architecture: NonEmpty
    """The config's `architectures[0]`."""
    model_type: NonEmpty
    """The model_type of the text backbone."""
    is_known: bool
    """True when a row of `quirks.py` describes this model_type; False: read by the general rules alone."""
    text_path: str = ""
    """Where the backbone's config stands in the document, such as `text_config`."""
    hidden_size: PositiveInt
    vocab_size: PositiveInt
    tied_embeddings: bool
    num_layers: PositiveInt
    layers: tuple[LayerFacts, ...] = Field(min_length=1)
    attentions: dict[str, AttentionFacts] = Field(default_factory=dict)
    linears: dict[str, LinearFacts] = Field(default_factory=dict)
    mlp: MlpFacts
    moe: MoeFacts | None = None
    norm: NormFacts
    hyper_connections: HyperConnectionFacts | None = None
    final_softcap: float | None = None
    lm_head_bias: bool = False
    num_mtp_layers: NonNegative = 0
    max_position_embeddings: int | None = None
    dtype: str = "bfloat16"
    quantization: QuantizationFacts
    out_of_scope: tuple[str, ...] = ()
    """Parts that the config describes and this project does not cover, such as the vision tower."""
    provenance: dict[str, str] = Field(default_factory=dict)
    """Fact to the config field it was read from, or to the rule that gave it: `moe.top_k` to `num_experts_per_tok=8`."""
    dead_fields: tuple[str, ...] = ()
    """Config fields that the model does not read."""
    notes: tuple[str, ...] = ()
    """What was special about this model, from `quirks.py`, with its reason."""

    def count_layers(self, *, attention: str | None = None, mlp: MlpKind | None = None) -> int:
        """Count the layers that have this attention key and this MLP kind (None: any)."""
        return sum(
            (attention is None or layer.attention == attention) and (mlp is None or layer.mlp == mlp)
            for layer in self.layers
        )
