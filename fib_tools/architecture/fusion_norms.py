"""Which norms of the hidden state SGLang fuses with the residual add before them.

A norm whose input is a sum takes the add in (`fused_add_rmsnorm`); the first norm of the model has nothing to add, and a
norm after a sublayer reads that sublayer's output alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fib_tools.architecture.facts_schema import MixerKind, MlpKind, ModelFacts, NormKind, NormLayout

__all__ = ["HiddenNorm", "list_hidden_norms"]

_PLAIN: Mapping[str, str] = {
    "minicpm3": "sglang/srt/models/minicpm3.py:330 scales the sublayer's output before it adds",
    "deepseek_v4": "sglang/srt/models/deepseek_v4.py mixes hyper-connection streams instead of adding",
}
"""Models whose norms SGLang leaves plain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HiddenNorm:
    """A norm of the hidden state and the layers that have it in this form."""

    name: str
    """Under the layer, such as `input_layernorm`; `norm` for the last one."""
    is_fused: bool
    layers: frozenset[int]
    """Empty for the norm after the last layer."""


def list_hidden_norms(facts: ModelFacts) -> tuple[HiddenNorm, ...]:
    """List the norms of all layers and the last one, each fused or plain."""
    can_fuse = (
        facts.norm.kind != NormKind.LAYERNORM and facts.model_type not in _PLAIN and facts.hyper_connections is None
    )
    norms = [norm for norm in _list_norms(facts) if norm.layers or norm.name == "norm"]
    return tuple(HiddenNorm(name=norm.name, is_fused=norm.is_fused and can_fuse, layers=norm.layers) for norm in norms)


def _list_norms(facts: ModelFacts) -> Iterator[HiddenNorm]:
    mixers = frozenset(layer.index for layer in facts.layers if layer.mixer != MixerKind.NONE)
    mlps = frozenset(layer.index for layer in facts.layers if layer.mlp != MlpKind.NONE)
    layout = facts.norm.layout
    first = frozenset({facts.layers[0].index})
    if layout == NormLayout.POST:
        yield HiddenNorm(name="post_attention_layernorm", is_fused=False, layers=mixers)
        yield HiddenNorm(name="post_feedforward_layernorm", is_fused=False, layers=mlps)
        yield HiddenNorm(name="norm", is_fused=False, layers=frozenset())
        return
    before_mixer = mixers | mlps if layout == NormLayout.SINGLE else mixers
    name = "norm" if layout == NormLayout.SINGLE else "input_layernorm"
    yield HiddenNorm(name=name, is_fused=False, layers=before_mixer & first)
    yield HiddenNorm(name=name, is_fused=True, layers=before_mixer - first)
    if layout == NormLayout.SANDWICH:
        yield HiddenNorm(name="post_attention_layernorm", is_fused=False, layers=mixers)
        yield HiddenNorm(name="pre_feedforward_layernorm", is_fused=True, layers=mlps)
        yield HiddenNorm(name="post_feedforward_layernorm", is_fused=False, layers=mlps)
    elif layout == NormLayout.PRE:
        yield HiddenNorm(name="post_attention_layernorm", is_fused=True, layers=mlps)
    yield HiddenNorm(name="norm", is_fused=True, layers=frozenset())
