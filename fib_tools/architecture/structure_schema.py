"""What a transformers model does when it runs: its calls, with shapes and dataflow."""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty, NonNegative
from fib_tools.model.kernel import Unexplained

__all__ = ["LayerGroup", "NotTraceable", "OpCall", "OpKind", "Stage", "Structure", "TensorShape"]


class OpKind(str, Enum):
    """What a call computes."""

    EMBEDDING = "embedding"
    LINEAR = "linear"
    """attributes: n, k, bias."""
    GROUPED_LINEAR = "grouped_linear"
    """The experts' weights, all at once. attributes: experts, n, k."""
    ATTENTION = "attention"
    """attributes: heads, kv_heads, head_dim, v_head_dim, sm_scale, window, chunk, causal, softcap, sinks."""
    LINEAR_ATTENTION = "linear_attention"
    """attributes: function (the hub kernel's name), and the head counts by tensor shapes."""
    CONV1D = "conv1d"
    """attributes: channels, width, activation, bias."""
    NORM = "norm"
    """attributes: kind (rmsnorm | gemma_rmsnorm | layernorm | rmsnorm_noweight | rmsnorm_gated | l2norm), size, eps, follows_add."""
    ROPE = "rope"
    """attributes: head_dim, rotary_dim, is_neox, heads, kv_heads."""
    ACTIVATION = "activation"
    """attributes: function (silu | gelu | gelu_tanh | relu2 | ...), is_gated, size."""
    ROUTING = "routing"
    """attributes: steps (operation order), experts, top_k, n_group, routing (as far as the order tells)."""
    SPARSE_INDEX = "sparse_index"
    """The indexer of sparse attention. attributes: topk (None: cut by the trace), head_dim."""
    MIXING = "mixing"
    """Weights over a handful of values: hyper-connection streams, compressed KV windows. attributes: function, width."""


class Stage(str, Enum):
    """Which forward pass a call was seen in."""

    PREFILL = "prefill"
    DECODE = "decode"


class TensorShape(Model):
    """A tensor that goes in or out of a call."""

    shape: tuple[int, ...]
    dtype: NonEmpty


class OpCall(Model):
    """One call of one stage; calls of layers that are alike are listed once, for the group's example layer."""

    id: NonNegative
    kind: OpKind
    stage: Stage
    module: str
    """Path of the module, with `*` for the layer number."""
    group: int | None = None
    """Index into `Structure.layer_groups`; None outside the layers."""
    role: str | None = None
    """By dataflow: q, k, v, qkv, o, gate, up, gate_up, down, router, lm_head, q_a, kv_a, shared_*; None: not told."""
    inputs: tuple[TensorShape, ...] = ()
    outputs: tuple[TensorShape, ...] = ()
    source: int | None = None
    """Number of the main input tensor: calls with the same number share their input."""
    feeds: tuple[int, ...] = ()
    """Ids of the claimed calls that read this one's output, looking through elementwise operations and views."""
    attributes: dict[str, int | float | str | bool | None] = Field(default_factory=dict)


class LayerGroup(Model):
    """Layers that are alike in class, parameters and scalar attributes."""

    count: int = Field(ge=1)
    example: NonNegative
    """The layer whose calls stand for the group."""
    layers: tuple[int, ...]
    path: NonEmpty
    """Path of the layer list, such as `model.layers`."""


class Structure(Model):
    """What was seen in one model."""

    transformers_version: NonEmpty
    architecture: NonEmpty
    """The transformers class that ran."""
    model_type: NonEmpty
    layer_groups: tuple[LayerGroup, ...]
    ops: tuple[OpCall, ...]
    unexplained: tuple[Unexplained, ...] = ()
    parameter_count: NonNegative
    """Parameters of the whole model at full depth, tied ones once."""
    prefill_tokens: NonNegative
    """Tokens of the prefill pass (batch 1): where this number stands in a shape it is the token axis."""
    seconds: dict[str, float] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def count_layers(self, op: OpCall) -> int:
        """Tell how many layers make this call; 0 outside the layers."""
        return 0 if op.group is None else self.layer_groups[op.group].count


class NotTraceable(Model):
    """Why there is no structure: the facts alone witness this model."""

    model_type: NonEmpty
    reason: NonEmpty
