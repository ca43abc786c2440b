"""Comparing what the config says with what the model does; what differs is reported, never averaged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from fib_tools.architecture.crosscheck_parameters import count_parameters
from fib_tools.architecture.facts_schema import AttentionFacts, LayerFacts, MlpKind, ModelFacts, NormLayout, QkNorm
from fib_tools.architecture.structure_schema import OpCall, OpKind, Stage, Structure
from fib_tools.model.kernel import Disagreement, Witness, WitnessSource

__all__ = ["compare_facts", "count_parameters"]

Value = int | float | str | bool | None


class _Claim(NamedTuple):
    """One subject, as both witnesses see it."""

    subject: str
    stated: Value
    seen: Value
    origin: str
    """Where the config states it."""
    module: str
    """Where the trace saw it."""


def compare_facts(facts: ModelFacts, structure: Structure) -> tuple[Disagreement, ...]:
    """List every subject on which config and trace differ; each subject once."""
    found: dict[str, Disagreement] = {}
    for claim in _collect(facts, structure):
        if not _agree(claim.stated, claim.seen):
            found.setdefault(claim.subject, _make_disagreement(claim))
    return tuple(found.values())


def _agree(stated: Value, seen: Value) -> bool:
    if isinstance(stated, float) and isinstance(seen, (int, float)) and not isinstance(seen, bool):
        return math.isclose(stated, seen, rel_tol=1e-3)
    return stated == seen


def _make_disagreement(claim: _Claim) -> Disagreement:
    return Disagreement(
        subject=claim.subject,
        statements=(
            Witness(source=WitnessSource.CONFIG, detail=f"{claim.origin}: {claim.stated!r}"),
            Witness(source=WitnessSource.TRACE, detail=f"{claim.module}: {claim.seen!r}"),
        ),
        chosen=f"{claim.stated!r}: the inventory goes by the config; a person should look at the difference",
    )


def _collect(facts: ModelFacts, structure: Structure) -> Iterator[_Claim]:
    yield from _collect_whole(facts, structure)
    for number, group in enumerate(structure.layer_groups):
        ops = [op for op in structure.ops if op.group == number and op.stage is Stage.PREFILL]
        for index in group.layers[:1] if group.layers[-1] < facts.num_layers else ():
            yield from _collect_layer(facts, facts.layers[index], ops)


def _collect_whole(facts: ModelFacts, structure: Structure) -> Iterator[_Claim]:
    seen_layers = sum(group.count for group in structure.layer_groups)
    yield _Claim("num_layers", facts.num_layers, seen_layers, _origin(facts, "num_layers"), "the layer list")
    for op in structure.ops:
        if op.group is None and op.role == "lm_head":
            yield _Claim("vocab_size", facts.vocab_size, op.attributes["n"], _origin(facts, "vocab_size"), op.module)
            yield _Claim("lm_head_bias", facts.lm_head_bias, op.attributes["bias"], "lm_head_bias", op.module)
    counted = count_parameters(facts)
    if counted is not None:
        yield _Claim("parameters", counted, structure.parameter_count, "sum over the facts", structure.architecture)


def _origin(facts: ModelFacts, fact: str) -> str:
    return facts.provenance.get(fact, fact)


def _collect_layer(facts: ModelFacts, layer: LayerFacts, ops: list[OpCall]) -> Iterator[_Claim]:
    attention = facts.attentions.get(layer.attention or "")
    calls = [op for op in ops if op.kind is OpKind.ATTENTION]
    has_attention = attention is not None
    yield _Claim(f"layer {layer.index} has attention", has_attention, bool(calls), layer.mixer.value, "the trace")
    if attention is not None and calls:
        yield from _collect_attention(facts, attention, f"attentions.{layer.attention}", ops, call=calls[0])
    linear = facts.linears.get(layer.attention or "")
    if linear is not None:
        convs = [op for op in ops if op.kind is OpKind.CONV1D and op.inputs]
        for op in convs[:1] if len(convs) == 1 else ():
            channels = op.inputs[0].shape[1] if len(op.inputs[0].shape) == 3 else None
            yield _Claim("conv channels", linear.conv_channels, channels, _origin(facts, "linears"), op.module)
        seen = any(op.kind is OpKind.LINEAR_ATTENTION for op in ops)
        yield _Claim(f"layer {layer.index} has linear attention", True, seen, layer.mixer.value, "the trace")
    yield from _collect_norms(facts, ops)
    yield from _collect_mlp(facts, layer, ops)


def _collect_attention(
    facts: ModelFacts, attention: AttentionFacts, key: str, ops: list[OpCall], *, call: OpCall
) -> Iterator[_Claim]:
    seen = call.attributes
    stated: dict[str, tuple[Value, Value]] = {
        "num_heads": (attention.num_heads, seen["heads"]),
        "num_kv_heads": (attention.num_kv_heads, seen["kv_heads"]),
        "head_dim": (attention.head_dim, seen["head_dim"]),
        "v_head_dim": (attention.v_head_dim, seen["v_head_dim"]),
        "sm_scale": (attention.sm_scale, seen["sm_scale"]),
        "window": (_bounded(facts, attention.window), _bounded(facts, seen["window"])),
        "chunk": (attention.chunk, seen["chunk"]),
        "softcap": (attention.softcap, seen["softcap"]),
        "has_sinks": (attention.has_sinks, seen["sinks"]),
        "qk_norm": (attention.qk_norm.value, _seen_qk_norm(attention, ops)),
        **_rope_statements(attention, ops, call),
    }
    for name, (value, traced) in stated.items():
        yield _Claim(f"{key}.{name}", value, traced, _origin(facts, f"{key}.{name}"), call.module)
    for op in ops:
        if op.role in ("q", "qkv", "k", "v") and attention.mla is None:
            yield _Claim(f"{key}.qkv_bias", attention.qkv_bias, op.attributes["bias"], f"{key}.qkv_bias", op.module)
        if op.role == "o":
            yield _Claim(f"{key}.output_bias", attention.output_bias, op.attributes["bias"], f"{key}.bias", op.module)


def _bounded(facts: ModelFacts, window: Value) -> Value:
    """A window no smaller than the longest input is none."""
    limit = facts.max_position_embeddings
    return None if isinstance(window, int) and limit is not None and window >= limit else window


def _seen_qk_norm(attention: AttentionFacts, ops: list[OpCall]) -> str:
    by_id = {op.id: op for op in ops}
    for op in ops:
        after = [by_id[identifier] for identifier in op.feeds if identifier in by_id]
        if op.kind is OpKind.ROPE and any(other.attributes.get("kind") == "rmsnorm_noweight" for other in after):
            return QkNorm.L2.value
        if op.role not in ("q", "q_b", "qkv") or (op.role == "qkv" and attention.mla is not None):
            continue
        sizes = [other.attributes["size"] for other in after if other.kind is OpKind.NORM and _reaches(other, by_id)]
        if attention.head_dim in sizes:
            return QkNorm.PER_HEAD.value
        if attention.num_heads * attention.head_dim in sizes:
            return QkNorm.FULL.value
    return QkNorm.NONE.value


def _reaches(norm: OpCall, by_id: dict[int, OpCall]) -> bool:
    kinds = {by_id[identifier].kind for identifier in norm.feeds if identifier in by_id}
    return bool(kinds & {OpKind.ROPE, OpKind.ATTENTION})


def _rope_statements(attention: AttentionFacts, ops: list[OpCall], call: OpCall) -> dict[str, tuple[Value, Value]]:
    ropes = [op for op in ops if op.kind is OpKind.ROPE and call.id in op.feeds and op.module == call.module]
    ropes = ropes or [op for op in ops if op.kind is OpKind.ROPE and op.module == call.module]
    has_rope: tuple[Value, Value] = (attention.rope is not None, bool(ropes))
    if not ropes or attention.rope is None or ropes[0].attributes.get("rotary_dim") is None:
        return {"rope": has_rope}
    seen = ropes[0].attributes
    return {
        "rope": has_rope,
        "rope.rotary_dim": (attention.rope.rotary_dim, seen["rotary_dim"]),
        "rope.is_neox": (attention.rope.is_neox, seen["is_neox"]),
    }


def _collect_norms(facts: ModelFacts, ops: list[OpCall]) -> Iterator[_Claim]:
    norms = [
        op
        for op in ops
        if op.kind is OpKind.NORM and op.attributes["size"] == facts.hidden_size and ".self_attn." not in op.module
    ]
    for op in norms:
        if op.attributes["kind"] == "rmsnorm_gated":
            continue
        yield _Claim("norm.kind", facts.norm.kind.value, op.attributes["kind"], "the model_type", op.module)
        yield _Claim("norm.eps", facts.norm.eps, op.attributes["eps"], _origin(facts, "norm.eps"), op.module)
    expected = {NormLayout.PRE: 2, NormLayout.POST: 2, NormLayout.SANDWICH: 4, NormLayout.SINGLE: 1}
    yield _Claim("norm.layout", expected[facts.norm.layout], len(norms), f"{facts.norm.layout.value} norms", "a layer")


def _collect_mlp(facts: ModelFacts, layer: LayerFacts, ops: list[OpCall]) -> Iterator[_Claim]:
    experts = [op for op in ops if op.kind is OpKind.GROUPED_LINEAR]
    yield _Claim(
        f"layer {layer.index} has experts", layer.mlp is MlpKind.MOE, bool(experts), layer.mlp.value, "the trace"
    )
    downs = [op.attributes["k"] for op in ops if op.role == "down"]
    if layer.mlp is MlpKind.DENSE:
        seen = downs[0] if downs else None
        yield _Claim(
            "intermediate_size", layer.intermediate_size, seen, _origin(facts, "layers.intermediate_size"), "down"
        )
    moe = facts.moe
    if moe is None or not experts or layer.mlp is not MlpKind.MOE:
        return
    last = experts[-1]
    yield _Claim(
        "moe.num_experts", moe.num_experts, last.attributes["experts"], _origin(facts, "moe.num_experts"), last.module
    )
    yield _Claim(
        "moe.intermediate_size",
        moe.intermediate_size,
        last.attributes["k"],
        _origin(facts, "moe.intermediate_size"),
        last.module,
    )
    yield _Claim("moe.activation", moe.activation, last.attributes["activation"], "mlp.activation", last.module)
    shared = downs[0] if downs else 0
    yield _Claim("moe.shared_intermediate_size", moe.shared_intermediate_size, shared, "shared experts", "the trace")
    for op in ops:
        if op.kind is OpKind.ROUTING:
            yield _Claim("moe.top_k", moe.top_k, op.attributes["top_k"], _origin(facts, "moe.top_k"), op.module)
            routing = "hash" if layer.index < moe.num_hash_layers else moe.routing
            yield _Claim("moe.routing", routing, op.attributes["routing"], _origin(facts, "moe.routing"), op.module)
