"""Needs of feed-forward layers: dense MLPs, routing, routed and shared experts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from fib_tools.architecture.facts_schema import MlpKind, MoeFacts
from fib_tools.architecture.fusion import fuse_mlp, fuse_router, fuse_shared_experts
from fib_tools.architecture.inventory_evidence import Claim, Sight
from fib_tools.architecture.inventory_linears import need_linears, rename
from fib_tools.architecture.inventory_needs import Site
from fib_tools.architecture.inventory_quantization import MOE_KERNELS
from fib_tools.architecture.parallelism import check_fp8_block, cut_experts, cut_mxfp4_width, cut_size
from fib_tools.architecture.quantization import QuantizationScheme
from fib_tools.architecture.structure_schema import OpKind
from fib_tools.model.kernel import ParameterValue

__all__ = ["need_feed_forward"]

_GATED: Mapping[str, str] = {
    "silu": "silu_and_mul",
    "swish": "silu_and_mul",
    "gelu": "gelu_and_mul",
    "gelu_pytorch_tanh": "gelu_tanh_and_mul",
    "gelu_new": "gelu_tanh_and_mul",
    "gelu_fast": "gelu_tanh_and_mul",
    "swiglu_oai": "swiglu_oai",
}
"""The config's word to the kernel of activation times gate."""

_UNGATED: Mapping[str, str] = {"relu2": "relu2"}

_EXPERT_ACTIVATIONS: Mapping[str, str] = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "swiglu_oai": "swiglu_oai",
    "relu2": "relu2",
}

_HASH_SCORES = "sqrtsoftplus_bias"
"""The routing whose scores weigh the experts of a token id; no bias takes part, as nothing is ranked."""

_ROUTED = (
    "experts that are chosen by token id come to the expert kernel as inputs; FlashInfer's APIs for that "
    "(trtllm_*_routed_moe) are not those that the kernel types of experts name"
)

_FUSED_SHARED = (
    "shared experts are listed apart from the routed ones; where SGLang fuses them (by default on one node without EP and "
    "without the trtllm MoE runner, sglang/srt/layers/moe/utils.py:601) they are one more expert and one more choice"
)

_WHOLE_BLOCKS = "MXFP4 experts are cut in whole blocks of 32 weights, sglang/srt/models/gpt_oss.py:992-996"

_PADDED_MXFP4 = (
    "MXFP4 experts are listed with the share that SGLang loads; its kernels pad further "
    "(sglang/srt/layers/quantization/mxfp4.py): trtllm rounds both sizes up to 128 (:485-488), Marlin the expert's "
    "width to 128 (:465) and the hidden size to 256 (:468)"
)


def need_feed_forward(site: Site) -> None:
    """Note everything that follows the mixers."""
    by_width: defaultdict[int, set[int]] = defaultdict(set)
    for layer in site.facts.layers:
        if layer.mlp == MlpKind.DENSE and layer.intermediate_size:
            by_width[layer.intermediate_size].add(layer.index)
    for width, layers in sorted(by_width.items()):
        _need_mlp(site, width, frozenset(layers))
    if site.facts.moe is not None:
        layers = {layer.index for layer in site.facts.layers if layer.mlp == MlpKind.MOE}
        if layers:
            _need_moe(site, site.facts.moe, frozenset(layers))


def _need_mlp(site: Site, width: int, layers: frozenset[int]) -> None:
    tp = site.point.tp
    need_linears(site, fuse_mlp(site.facts, width, tp=tp), layers, tp=tp)
    mlp = site.facts.mlp
    module = site.path(rename(site, "mlp.act_fn"))
    claim = Claim(module=module, layers=layers, facts=("mlp.activation", "layers.intermediate_size"), tp=tp)
    _need_activation(site, mlp.activation, claim, width=(width, tp), is_gated=mlp.is_gated)


def _need_activation(
    site: Site,
    word: str,
    claim: Claim,
    *,
    width: tuple[int, int],
    is_gated: bool,
    constants: Mapping[str, float] | None = None,
) -> None:
    kernel = (_GATED if is_gated else _UNGATED).get(word)
    if kernel is None:
        gate = "with" if is_gated else "without"
        site.leave_unexplained("activation", claim.module, f"{word} {gate} a gate has no kernel type")
        return
    total, tp = width
    sight = Sight(kind=OpKind.ACTIVATION, attributes=(("size", total), ("is_gated", is_gated)))
    local = cut_size(total, tp, what="intermediate_size")
    parameters: dict[str, ParameterValue] = {"intermediate_size": local, **(constants or {})}
    site.need(kernel, parameters, replace(claim, sights=(sight,)))


def _need_moe(site: Site, moe: MoeFacts, layers: frozenset[int]) -> None:
    tp = site.point.tp
    need_linears(site, (fuse_router(moe, site.facts),), layers, tp=tp)
    names = ("num_experts", "top_k", "routing", "n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob")
    facts = tuple(f"moe.{name}" for name in names)
    claim = Claim(module=site.path(rename(site, "mlp.experts")), layers=layers, tp=tp, facts=facts)
    hashed = frozenset(sorted(layers)[: moe.num_hash_layers])
    router = site.path(rename(site, "mlp.gate"))
    expert_facts = (*facts, "hidden_size", "moe.intermediate_size", "mlp.activation")
    if hashed:
        _need_hash_routing(site, moe, replace(claim, module=router, layers=hashed))
        _need_experts(site, moe, replace(claim, facts=expert_facts, layers=hashed), routing=_given(moe))
    if layers - hashed:
        claim = replace(claim, layers=layers - hashed)
        _need_routing(site, moe, replace(claim, module=router))
        _need_experts(site, moe, replace(claim, facts=expert_facts), routing=_routing_parameters(moe))
    _need_shared_experts(site, moe, layers)


def _need_shared_experts(site: Site, moe: MoeFacts, layers: frozenset[int]) -> None:
    tp = site.point.tp
    if moe.shared_intermediate_size:
        need_linears(site, fuse_shared_experts(moe, site.facts, tp=tp), layers, tp=tp)
        shared = Claim(module=site.path(rename(site, "mlp.shared_experts.act_fn")), layers=layers, tp=tp)
        shared = replace(shared, facts=("moe.shared_intermediate_size", "moe.num_shared_experts", "mlp.activation"))
        width = (moe.shared_intermediate_size, tp)
        _need_activation(site, moe.activation, shared, width=width, is_gated=moe.is_gated)
        site.note(_FUSED_SHARED)
    if moe.has_shared_expert_gate:
        gate = Sight(kind=OpKind.ACTIVATION, attributes=(("function", "sigmoid"), ("size", 1)))
        site.explain(gate, "the shared experts are multiplied by the sigmoid of a gate, an elementwise operation")


def _given(moe: MoeFacts) -> dict[str, ParameterValue]:
    """Give the routing parameters of experts that are chosen by a kernel before theirs."""
    return {"top_k": moe.top_k, "routing": "given", "routed_scaling_factor": moe.routed_scaling_factor}


def _routing_parameters(moe: MoeFacts) -> dict[str, ParameterValue]:
    # A config that states n_group=1 runs through DeepSeek's grouped routing with one group, and the dataset names it so.
    routing = "ds" if moe.routing == "sigmoid_bias" and moe.n_group is not None else moe.routing
    is_grouped = routing in ("ds", "softmax_group")
    return {
        "top_k": moe.top_k,
        "routing": routing,
        "n_group": moe.n_group if is_grouped else None,
        "topk_group": moe.topk_group if is_grouped else None,
        "routed_scaling_factor": moe.routed_scaling_factor,
        "norm_topk_prob": moe.norm_topk_prob,
    }


def _need_routing(site: Site, moe: MoeFacts, claim: Claim) -> None:
    parameters: dict[str, ParameterValue] = {"num_experts": moe.num_experts, **_routing_parameters(moe)}
    sight = Sight(kind=OpKind.ROUTING, attributes=(("experts", moe.num_experts), ("top_k", moe.top_k)))
    site.need("moe_routing", parameters, replace(claim, sights=(sight,), attribute="gate"))


def _need_hash_routing(site: Site, moe: MoeFacts, claim: Claim) -> None:
    """Note the choice of experts by token id, from a table that every GPU has whole."""
    if moe.routing != _HASH_SCORES or not moe.norm_topk_prob:
        site.leave_unexplained("routing", claim.module, f"experts by token id, weighted by {moe.routing}")
        return
    table: dict[str, ParameterValue] = {
        "num_routed_experts": moe.num_experts,
        "topk": moe.top_k,
        "vocab": site.facts.vocab_size,
    }
    sizes = (("experts", moe.num_experts), ("top_k", moe.top_k), ("routing", "hash"))
    facts = ("moe.num_hash_layers", "moe.num_experts", "moe.top_k", "vocab_size")
    site.need("hash_topk", table, replace(claim, facts=facts, sights=(Sight(kind=OpKind.ROUTING, attributes=sizes),)))
    site.note(_ROUTED)


def _need_experts(site: Site, moe: MoeFacts, claim: Claim, *, routing: Mapping[str, ParameterValue]) -> None:
    by_scheme: defaultdict[QuantizationScheme, set[int]] = defaultdict(set)
    for layer in claim.layers:
        path = f"{site.prefix}.{layer}.{rename(site, 'mlp.experts')}"
        by_scheme[site.quantization.get_scheme(f"{path}.0.up_proj", is_expert=True)].add(layer)
    for scheme, layers in sorted(by_scheme.items()):
        kernel = MOE_KERNELS.get(scheme)
        if kernel is None:
            site.leave_unexplained("moe", claim.module, f"no kernel type for experts in {scheme.value}")
            continue
        parameters = _expert_parameters(site, moe, scheme, routing)
        word = None if scheme == QuantizationScheme.NONE else scheme.value
        sights = (Sight(kind=OpKind.GROUPED_LINEAR, attributes=(("experts", moe.num_experts),)),)
        facts = claim.facts if word is None else (*claim.facts, "quantization")
        stored = replace(claim, layers=frozenset(layers), quantization=word, facts=facts)
        if scheme == QuantizationScheme.MXFP4:
            site.note(_PADDED_MXFP4)
            if _expert_width(site, moe, QuantizationScheme.NONE) != parameters["intermediate_size"]:
                stored = replace(stored, engine=_WHOLE_BLOCKS)
        site.need(kernel, parameters, replace(stored, sights=sights))


def _expert_width(site: Site, moe: MoeFacts, scheme: QuantizationScheme) -> int:
    expert_tp = site.point.expert_tp
    if scheme == QuantizationScheme.MXFP4:
        return cut_mxfp4_width(moe.intermediate_size, expert_tp)
    width = cut_size(moe.intermediate_size, expert_tp, what="moe_intermediate_size", by="TP / EP")
    if scheme == QuantizationScheme.FP8_BLOCK:
        check_fp8_block(width, site.quantization.group_size or 128, what="width of one expert", tp=expert_tp)
    return width


def _expert_parameters(
    site: Site, moe: MoeFacts, scheme: QuantizationScheme, routing: Mapping[str, ParameterValue]
) -> dict[str, ParameterValue]:
    local_experts = cut_experts(moe.num_experts, site.point)
    parameters: dict[str, ParameterValue] = {
        "num_experts": moe.num_experts,
        "num_local_experts": local_experts,
        "hidden_size": site.facts.hidden_size,
        "intermediate_size": _expert_width(site, moe, scheme),
        **routing,
        "activation": _EXPERT_ACTIVATIONS.get(moe.activation, moe.activation),
    }
    if moe.expert_bias:
        parameters["expert_bias"] = True
    if moe.swiglu_limit is not None:
        parameters["swiglu_limit"] = moe.swiglu_limit
    if scheme == QuantizationScheme.W4A16:
        parameters["group_size"] = site.quantization.group_size
    return parameters
