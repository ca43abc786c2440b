"""SGLang's fusion of the projections of linear attention: GDN, KDA and Mamba2.

Sources: SGLang 0.5.23 `models/qwen3_next.py:157-264`, `models/kimi_linear.py:330-421`,
`layers/attention/mamba/mamba.py:278-443`, `configs/mamba_utils.py:29`.
"""

from __future__ import annotations

from dataclasses import replace

from fib_tools.architecture.facts_schema import LinearFacts, MixerKind, ModelFacts
from fib_tools.architecture.fusion import Cut, FusedLinear, LinearPart, column, replicated, row
from fib_tools.architecture.parallelism import cut_size
from fib_tools.model.base import Model

__all__ = ["RecurrentShare", "cut_recurrent", "fuse_recurrent"]


class RecurrentShare(Model):
    """What one GPU holds of a linear attention layer."""

    key_heads: int
    """Query and key heads; groups of Mamba2."""
    value_heads: int
    key_dim: int
    value_dim: int

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution."""
        return 2 * self.key_dim + self.value_dim


def cut_recurrent(linear: LinearFacts, tp: int) -> RecurrentShare:
    """Divide the heads; Mamba2 replicates its groups where they do not divide, as SGLang does.

    Raises:
        ParallelismError: when the heads do not divide.
    """
    value_heads = cut_size(linear.num_value_heads, tp, what="value heads of linear attention")
    if linear.kind == MixerKind.MAMBA2 and linear.num_key_heads % tp:
        key_heads = 1
    else:
        key_heads = cut_size(linear.num_key_heads, tp, what="key heads of linear attention")
    return RecurrentShare(
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=key_heads * linear.key_head_dim,
        value_dim=value_heads * linear.value_head_dim,
    )


def fuse_recurrent(linear: LinearFacts, facts: ModelFacts, *, key: str, tp: int) -> tuple[FusedLinear, ...]:
    """Give the projections into and out of a linear attention layer."""
    makers = {MixerKind.GDN: _fuse_gdn, MixerKind.KDA: _fuse_kda, MixerKind.MAMBA2: _fuse_mamba2}
    maker = makers.get(linear.kind)
    if maker is None:
        return ()
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
    sizes = (*(f"linears.{key}.{name}" for name in names), "hidden_size")
    return tuple(replace(fused, facts=sizes) for fused in maker(linear, facts, tp))


def _fuse_gdn(linear: LinearFacts, facts: ModelFacts, tp: int) -> tuple[FusedLinear, ...]:
    path = "linear_attn"
    qkvz = 2 * linear.key_dim + 2 * linear.value_dim
    wide = column("in_proj_qkvz", ((f"{path}.in_proj_qkvz", "in_proj", qkvz),), facts.hidden_size, tp=tp)
    heads = linear.num_value_heads
    narrow = column("in_proj_ba", ((f"{path}.in_proj_ba", "in_proj", 2 * heads),), facts.hidden_size, tp=tp)
    return (
        replace(wide, splits=(linear.conv_channels, linear.value_dim)),
        replace(narrow, splits=(heads,), is_quantizable=False),
        row("out_proj", (f"{path}.out_proj", "out_proj", facts.hidden_size), linear.value_dim, tp=tp),
    )


def _fuse_kda(linear: LinearFacts, facts: ModelFacts, tp: int) -> tuple[FusedLinear, ...]:
    path, hidden, rank = "self_attn", facts.hidden_size, linear.value_head_dim
    qkv = tuple(
        (f"{path}.{name}_proj", name, width)
        for name, width in (("q", linear.key_dim), ("k", linear.key_dim), ("v", linear.value_dim))
    )
    gates = tuple(
        gate
        for name in ("f", "g")
        for gate in (
            replicated(f"{name}_a_proj", ((f"{path}.{name}_a_proj", "in_proj", rank),), hidden),
            column(f"{name}_b_proj", ((f"{path}.{name}_b_proj", "in_proj", linear.value_dim),), rank, tp=tp),
        )
    )
    return (
        column("qkv_proj", qkv, hidden, tp=tp),
        *gates,
        column("b_proj", ((f"{path}.b_proj", "in_proj", linear.num_value_heads),), hidden, tp=tp),
        row("o_proj", (f"{path}.o_proj", "o", hidden), linear.value_dim, tp=tp),
    )


def _fuse_mamba2(linear: LinearFacts, facts: ModelFacts, tp: int) -> tuple[FusedLinear, ...]:
    share = cut_recurrent(linear, tp)
    projected = LinearPart(
        path="mixer.in_proj",
        role="in_proj",
        total=linear.conv_channels + linear.value_dim + linear.num_value_heads,
        local=share.conv_channels + share.value_dim + share.value_heads,
    )
    into = FusedLinear(
        name="in_proj",
        parts=(projected,),
        total_k=facts.hidden_size,
        k=facts.hidden_size,
        cut=Cut.COLUMN,
        bias=linear.has_projection_bias,
        checks_blocks=False,
    )
    out = row("out_proj", ("mixer.out_proj", "out_proj", facts.hidden_size), linear.value_dim, tp=tp)
    return into, replace(out, bias=linear.has_projection_bias)
