"""The mixture of experts: sizes, routing, shared experts."""

from __future__ import annotations

from fib_tools.architecture.facts_layers import EXPERT_COUNT_FIELDS
from fib_tools.architecture.facts_reader import LIMITS, FieldReader
from fib_tools.architecture.facts_schema import MoeFacts
from fib_tools.architecture.quirks import Quirk

__all__ = ["ACTIVATION_FIELDS", "read_moe"]

ACTIVATION_FIELDS = ("hidden_activation", "mlp_hidden_act", "hidden_act")
_SHARED_WIDTH_FIELDS = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
)


def read_moe(reader: FieldReader, quirk: Quirk, *, activation: str) -> MoeFacts:
    """Read the experts of a model that has some.

    Raises:
        ConfigError: naming the field that is missing or does not fit the others.
    """
    experts = reader.get_int(*EXPERT_COUNT_FIELDS, fact="moe.num_experts", limit=LIMITS["experts"])
    top_k = reader.get_int(
        "num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_topk", fact="moe.top_k", limit=experts
    )
    width = reader.get_int(_width_field(reader), fact="moe.intermediate_size", limit=LIMITS["intermediate"])
    n_group, topk_group = _read_groups(reader, experts)
    has_correction = _has_correction_bias(reader, quirk)
    shared, shared_width = _read_shared(reader, width)
    renormalises = reader.find_bool("norm_topk_prob", "moe_renormalize", fact="moe.norm_topk_prob")
    routing = quirk.routing or _read_routing(
        reader, is_grouped=(n_group or 1) > 1, has_correction=has_correction, renormalises=renormalises is not False
    )
    return MoeFacts(
        num_experts=experts,
        top_k=top_k,
        intermediate_size=width,
        routing=routing,
        n_group=n_group,
        topk_group=topk_group,
        routed_scaling_factor=reader.find_float(
            "routed_scaling_factor", "moe_router_topk_scaling_factor", fact="moe.routed_scaling_factor", high=1e6
        ),
        norm_topk_prob=renormalises is not False,
        has_correction_bias=has_correction,
        router_bias=quirk.router_bias,
        expert_bias=quirk.expert_bias,
        activation=quirk.activation or activation,
        is_gated=quirk.is_mlp_gated,
        swiglu_limit=reader.find_float("swiglu_limit", fact="moe.swiglu_limit", high=1e6),
        swiglu_alpha=quirk.swiglu_alpha,
        num_shared_experts=shared,
        shared_intermediate_size=shared_width,
        has_shared_expert_gate=quirk.has_shared_expert_gate and shared > 0,
        num_hash_layers=reader.find_int("num_hash_layers", fact="moe.num_hash_layers", limit=LIMITS["layers"], low=0)
        or 0,
    )


def _width_field(reader: FieldReader) -> str:
    # Families without dense layers call the experts' width intermediate_size (Mixtral, GPT-OSS, MiniMax-M2).
    return "moe_intermediate_size" if reader.has("moe_intermediate_size") else "intermediate_size"


def _read_groups(reader: FieldReader, experts: int) -> tuple[int | None, int | None]:
    n_group = reader.find_int("n_group", "num_expert_group", fact="moe.n_group", limit=experts)
    topk_group = reader.find_int("topk_group", fact="moe.topk_group", limit=n_group or experts)
    if n_group is not None and experts % n_group:
        raise reader.fail("n_group", f"{n_group} groups do not divide {experts} experts")
    return n_group, topk_group


def _has_correction_bias(reader: FieldReader, quirk: Quirk) -> bool:
    if quirk.has_correction_bias is not None:
        return quirk.has_correction_bias
    given = reader.find_bool("use_routing_bias", fact="moe.has_correction_bias")
    method = reader.find_text("topk_method", fact="moe.has_correction_bias")
    return bool(given) or method == "noaux_tc"


def _read_shared(reader: FieldReader, width: int) -> tuple[int, int]:
    fact, limit = "moe.num_shared_experts", LIMITS["experts"]
    count = reader.find_int(
        "n_shared_experts", "num_shared_experts", "moe_num_shared_experts", fact=fact, limit=limit, low=0
    )
    given = None
    for name in _SHARED_WIDTH_FIELDS:
        if reader.has(name):
            given = reader.find_int(name, fact="moe.shared_intermediate_size", limit=LIMITS["intermediate"], low=0)
            break
    if given is not None:
        count = (1 if count is None else count) if given else 0
        return count, given if count else 0
    return count or 0, (count or 0) * width


def _read_routing(reader: FieldReader, *, is_grouped: bool, has_correction: bool, renormalises: bool) -> str:
    scoring = reader.find_text("scoring_func", "moe_router_activation_func", fact="moe.routing")
    if scoring == "sigmoid" or has_correction:
        if not has_correction:
            return "sigmoid"
        return "ds" if is_grouped else "sigmoid_bias"
    if scoring not in (None, "softmax"):
        raise reader.fail("scoring_func", f"a routing that is not known here: {scoring!r}")
    if is_grouped:
        return "softmax_group"
    if scoring is None:
        reader.explain("moe.routing", "softmax, as in every family without scoring_func")
    return "renormalize" if renormalises else "default"
