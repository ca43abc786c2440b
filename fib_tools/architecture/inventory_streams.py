"""Needs of hyper-connections, which keep several residual streams and mix them around each sublayer (DeepSeek-V4).

Source: SGLang 0.5.23 `models/deepseek_v4.py:327` (projection and weights), `:3916` (the end) and
`models/deepseek_v4_mhc.py:525` (the mixing), `:102` (the factor on the weights of the output).
"""

from __future__ import annotations

from dataclasses import replace

from fib_tools.architecture.inventory_evidence import Claim, Sight
from fib_tools.architecture.inventory_needs import Site
from fib_tools.architecture.structure_schema import OpKind
from fib_tools.model.kernel import ParameterValue

__all__ = ["need_hyper_connections"]

_POST_MULT = 2.0
"""`MHC_POST_MULT_VALUE` of SGLang; transformers writes it as 2."""
_FUSABLE = (
    "the kernels of hyper-connections are listed one by one; SGLang can fuse the mixing after a sublayer with the "
    "weights before the next (mhc_fused_post_pre) and the norm with the latter"
)


def need_hyper_connections(site: Site) -> None:
    """Note the projection, the weights and the mixing of streams, twice a layer, and their sum at the end."""
    facts, streams = site.facts, site.facts.hyper_connections
    if streams is None:
        return
    hc, hidden = streams.streams, facts.hidden_size
    mix, k = hc * (2 + hc), hc * hidden
    names = ("streams", "iterations", "eps")
    claim = Claim(
        layers=frozenset(layer.index for layer in facts.layers),
        facts=("hidden_size", "norm.eps", *(f"hyper_connections.{name}" for name in names)),
    )
    eps: dict[str, ParameterValue] = {"eps": facts.norm.eps, "hc_eps": streams.eps}
    size: dict[str, ParameterValue] = {"hc": hc, "hidden_size": hidden}
    weights = {**size, **eps, "sinkhorn_iters": streams.sinkhorn_iterations, "post_mult": _POST_MULT}
    projected = Sight(kind=OpKind.LINEAR, attributes=(("n", mix), ("k", k)), modules=2)
    weighted = Sight(kind=OpKind.MIXING, attributes=(("function", "softmax"), ("width", hc)))
    mixed = Sight(kind=OpKind.MIXING, attributes=(("function", "bmm"), ("width", hc)))
    for name in ("attn_hc", "ffn_hc"):
        sublayer = replace(claim, module=site.path(name))
        site.need("mhc_prenorm_gemm", {"n": mix, "k": k}, replace(sublayer, sights=(projected,)))
        site.need("mhc_pre_big_fuse", weights, replace(sublayer, sights=(weighted,)))
        site.need("mhc_post", size, replace(sublayer, sights=(mixed,)))
        site.cover(sublayer.module)
    head = f"{site.prefix.rpartition('.')[0]}.hc_head"
    summed = Sight(kind=OpKind.LINEAR, attributes=(("n", hc), ("k", k)))
    site.need("mhc_head", {**size, **eps}, replace(claim, module=head, layers=frozenset(), sights=(summed,)))
    site.cover(head)
    site.note(_FUSABLE)
