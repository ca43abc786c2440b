"""Needs of linear attention: Gated DeltaNet, Kimi Delta Attention and Mamba2."""

from __future__ import annotations

from dataclasses import replace

from fib_tools.architecture.facts_schema import LinearFacts, MixerKind
from fib_tools.architecture.fusion_recurrent import RecurrentShare, cut_recurrent, fuse_recurrent
from fib_tools.architecture.inventory_evidence import Claim, Sight
from fib_tools.architecture.inventory_linears import need_linears, rename
from fib_tools.architecture.inventory_needs import Site
from fib_tools.architecture.structure_schema import OpKind
from fib_tools.model.kernel import ParameterValue

__all__ = ["need_recurrent"]

_VERIFY = "speculative decoding verifies several tokens of a sequence at once"


def need_recurrent(site: Site, key: str, linear: LinearFacts) -> None:
    """Note everything of one kind of linear attention layer."""
    tp = site.point.attention_tp
    layers = site.layers_of(key)
    share = cut_recurrent(linear, tp)
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
    facts = tuple(f"linears.{key}.{name}" for name in names)
    folder = {MixerKind.GDN: "linear_attn", MixerKind.MAMBA2: "mixer"}.get(linear.kind, "self_attn")
    claim = Claim(module=site.path(rename(site, folder)), layers=layers, tp=tp, facts=facts)
    makers = {MixerKind.GDN: _need_gdn, MixerKind.KDA: _need_kda, MixerKind.MAMBA2: _need_mamba2}
    maker = makers.get(linear.kind)
    if maker is None:
        site.leave_unexplained("linear_attention", claim.module, f"{linear.kind.value} attention has no kernel type")
        return
    need_linears(site, fuse_recurrent(linear, site.facts, key=key, tp=tp), layers, tp=tp)
    _need_convolution(site, linear, share, claim)
    maker(site, linear, share, replace(claim, sights=(Sight(kind=OpKind.LINEAR_ATTENTION),)))


def _need_convolution(site: Site, linear: LinearFacts, share: RecurrentShare, claim: Claim) -> None:
    if not linear.conv_width:
        return
    sight = Sight(kind=OpKind.CONV1D, attributes=(("channels", linear.conv_channels), ("width", linear.conv_width)))
    parameters: dict[str, ParameterValue] = {
        "channels": share.conv_channels,
        "width": linear.conv_width,
        "activation": linear.conv_activation,
        "bias": linear.conv_bias,
    }
    claim = replace(claim, module=f"{claim.module}.conv1d", sights=(sight,))
    for stage in ("decode", "prefill"):
        site.need(f"causal_conv1d_{stage}", parameters, replace(claim, stages=(stage,)))


def _need_gdn(site: Site, linear: LinearFacts, share: RecurrentShare, claim: Claim) -> None:
    parameters: dict[str, ParameterValue] = {
        "num_q_heads": share.key_heads,
        "num_v_heads": share.value_heads,
        "head_size": linear.key_head_dim,
        "use_qk_l2norm": linear.use_qk_l2norm,
    }
    if linear.key_head_dim != linear.value_head_dim:
        site.leave_unexplained("gated_delta_rule", claim.module, "key and value heads of different width")
        return
    for stage in ("decode", "prefill"):
        site.need(f"gdn_{stage}", parameters, replace(claim, stages=(stage,)))
    if site.facts.num_mtp_layers or site.point.draft_tokens:
        site.need("gdn_mtp", parameters, replace(claim, stages=("decode",), sights=(), engine=_VERIFY))
    gates = Sight(kind=OpKind.ACTIVATION, attributes=(("size", linear.num_value_heads),))
    site.explain(gates, "decay and step of the delta rule are made from their gates inside its kernel")
    _need_gated_norm(site, linear, "silu", claim)


def _need_kda(site: Site, linear: LinearFacts, share: RecurrentShare, claim: Claim) -> None:
    parameters: dict[str, ParameterValue] = {"num_heads": share.value_heads, "head_dim": linear.value_head_dim}
    for stage in ("decode", "prefill"):
        site.need(f"kda_{stage}", parameters, replace(claim, stages=(stage,)))
    _need_gated_norm(site, linear, "sigmoid", claim)


def _need_gated_norm(site: Site, linear: LinearFacts, activation: str, claim: Claim) -> None:
    sight = Sight(kind=OpKind.NORM, attributes=(("kind", "rmsnorm_gated"), ("size", linear.value_head_dim)))
    parameters: dict[str, ParameterValue] = {
        "hidden_size": linear.value_head_dim,
        "eps": site.facts.norm.eps,
        "norm_before_gate": True,
        "activation": activation,
    }
    site.need("rmsnorm_gated", parameters, replace(claim, module=f"{claim.module}.norm", sights=(sight,)))


def _need_mamba2(site: Site, linear: LinearFacts, share: RecurrentShare, claim: Claim) -> None:
    parameters: dict[str, ParameterValue] = {
        "num_heads": share.value_heads,
        "head_dim": linear.value_head_dim,
        "d_state": linear.key_head_dim,
        "num_groups": share.key_heads,
    }
    site.need("mamba_ssu_decode", parameters, replace(claim, stages=("decode",)))
    scan = {**parameters, "chunk_size": linear.chunk_size}
    site.need("mamba_chunk_scan", scan, replace(claim, stages=("prefill",)))
    sight = Sight(kind=OpKind.NORM, attributes=(("kind", "rmsnorm_gated"), ("size", linear.value_dim)))
    norm: dict[str, ParameterValue] = {
        "hidden_size": share.value_dim,
        "group_size": linear.norm_group_size,
        "eps": site.facts.norm.eps,
        "norm_before_gate": linear.norm_before_gate,
    }
    site.need("rmsnorm_gated", norm, replace(claim, module=f"{claim.module}.norm", sights=(sight,)))
