"""The modules of a model as a tree, as SGLang builds it: what stands under what, how often, and which kernels it calls.

A block whose layers do not all call the same is several modules, each with its layers:

    DeepseekV3ForCausalLM 1
      model 1
        layers 61
          self_attn 61: ...
          mlp_dense 3: gate_up_proj, act_fn, down_proj
          mlp_moe 58: gate, experts, shared_experts ...
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from pydantic import Field

from fib_tools.architecture.facts_schema import LayerFacts, ModelFacts
from fib_tools.architecture.inventory_schema import Inventory
from fib_tools.architecture.structure_schema import Structure
from fib_tools.model.base import Model, NonEmpty

__all__ = ["ModelModule", "build_modules"]

_ANY_LAYER = "*"
_MTP = "mtp"
_ATTENTION = "attn"
"""What SGLang calls the part of a block that runs the attention kernels (`RadixAttention`)."""
_OUTSIDE = ("model", "language_model", "embed_tokens", "layers", "hc_head", "norm", "lm_head", "sampler", _MTP)
_IN_LAYER = (
    *("attn_hc", "input_layernorm", "norm", "self_attn", "linear_attn", "mixer", "post_attention_layernorm"),
    *("ffn_hc", "pre_feedforward_layernorm", "mlp", "block_sparse_moe", "post_feedforward_layernorm"),
)
_IN_BLOCK = (
    *("fused_qkv_a_proj_with_mqa", "wqkv_a", "q_a_proj", "kv_a_proj_with_mqa", "q_a_layernorm", "kv_a_layernorm"),
    *("q_b_proj", "wq_b", "wk", "kv_b_proj", "in_proj", "in_proj_qkvz", "in_proj_ba", "qkv_proj", "q_proj", "conv1d"),
    *("q_norm", "k_norm", "kv_norm", "q_head_norm", "rotary_emb", "compressor", "indexer", "w_kc", _ATTENTION, "w_vc"),
    *("norm", "wo_a", "wo_b", "o_proj", "out_proj", "gate", "experts", "gate_up_proj", "up_proj", "act_fn"),
    *("down_proj", "shared_expert_gate", "shared_experts"),
)
"""Names in the order in which a forward pass comes to them; others stand last."""


class ModelModule(Model):
    """One module: a block of others, or a layer that calls kernels."""

    key: NonEmpty
    """Its name, as short as it can be and be no other's: `o_proj`, `shared_experts.down_proj`."""
    path: NonEmpty
    """With `*` for layer numbers: `model.layers.*.mlp.shared_experts.down_proj`."""
    parent: str | None = None
    """The key of the block around it."""
    type: Literal["block", "layer"]
    count: int = Field(ge=1)
    """How many of it the model has in all."""
    layers: tuple[int, ...] = ()
    needs: tuple[int, ...] = ()
    """Indices into `Inventory.needs`: the kernels that it calls."""
    gaps: tuple[int, ...] = ()
    """Indices into `Inventory.unexplained`: what it does and no kernel type describes."""


class _Part(NamedTuple):
    """One name on the way from the outermost module."""

    name: str
    label: str = ""
    """What the layers have in common, where a block is several modules."""
    first: int = -1
    """The first of those layers."""


_Parts = tuple[_Part, ...]


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A kernel or a gap, in one module."""

    parts: _Parts
    inner: int
    """How many names stand outside of the layers; all of them for a module that is in no layer."""
    layers: frozenset[int] = frozenset()
    need: int | None = None
    gap: int | None = None
    kernel: str = ""

    @property
    def block(self) -> _Parts:
        """The outermost module in the layer."""
        return self.parts[: self.inner + 1]


def build_modules(
    facts: ModelFacts, inventory: Inventory, structure: Structure | None = None
) -> tuple[ModelModule, ...]:
    """Draw the tree of a model's modules, parents before children, in the order of a forward pass."""
    calls = _name_attention(_separate_blocks(list(_list_calls(inventory, structure)), facts))
    below: defaultdict[_Parts, list[_Call]] = defaultdict(list)
    for call in calls:
        for depth in range(len(call.parts) + 1):
            below[call.parts[:depth]].append(call)
    order = sorted(below, key=lambda parts: _rank(parts, _count_outside(below[parts])))
    keys = _choose_keys(order, facts.architecture)
    modules: dict[_Parts, ModelModule] = {}
    for parts in order:
        modules[parts] = _make_module(parts, below[parts], facts, (keys[parts], modules.get(parts[:-1])))
    return tuple(modules.values())


def _count_outside(calls: Iterable[_Call]) -> int:
    """Count how many names of a module that makes these calls stand outside of the layers."""
    return min((call.inner for call in calls), default=0)


def _make_module(
    parts: _Parts, calls: Sequence[_Call], facts: ModelFacts, place: tuple[str, ModelModule | None]
) -> ModelModule:
    key, parent = place
    inner = _count_outside(calls)
    own = [call for call in calls if call.parts == parts]
    layers = {layer for call in calls for layer in call.layers} if len(parts) > inner else set()
    if len(parts) == inner and any(len(call.parts) > inner for call in calls):
        count = facts.num_layers
    elif parts and parts[0].name == _MTP:
        count = max(1, facts.num_mtp_layers)
    else:
        count = len(layers) or (parent.count if parent else 1)
    return ModelModule(
        key=key,
        path=_spell(parts, inner) or facts.architecture,
        parent=parent.key if parts and parent else None,
        type="layer" if parts and len(own) == len(calls) else "block",
        count=count,
        layers=tuple(sorted(layers)),
        needs=tuple(sorted({call.need for call in own if call.need is not None})),
        gaps=tuple(call.gap for call in own if call.gap is not None),
    )


def _list_calls(inventory: Inventory, structure: Structure | None) -> Iterator[_Call]:
    for index, need in enumerate(inventory.needs):
        for module, layers in need.places.items():
            yield replace(_parse(module), layers=frozenset(layers), need=index, kernel=need.kernel)
    for index, gap in enumerate(inventory.unexplained):
        yield replace(_parse(gap.module), layers=_find_layers(gap.module, structure), gap=index)


def _parse(module: str) -> _Call:
    names = [name for name in module.split(".") if name]
    inner = names.index(_ANY_LAYER) if _ANY_LAYER in names else len(names)
    return _Call(parts=tuple(_Part(name) for name in names if name != _ANY_LAYER), inner=inner)


def _find_layers(module: str, structure: Structure | None) -> frozenset[int]:
    """Find the layers in which the trace saw a module."""
    if structure is None:
        return frozenset()
    groups = {op.group for op in structure.ops if op.module == module and op.group is not None}
    return frozenset(layer for group in groups for layer in structure.layer_groups[group].layers)


def _separate_blocks(calls: Sequence[_Call], facts: ModelFacts) -> Iterator[_Call]:
    """Make of a block, in whose layers different things are called, one block for each kind of layer."""
    blocks: defaultdict[_Parts, list[_Call]] = defaultdict(list)
    for call in calls:
        blocks[call.block].append(call)
    for block, inside in blocks.items():
        is_layer = any(len(call.parts) > len(block) for call in inside) and inside[0].inner < len(block)
        kinds = _list_kinds(inside) if is_layer else []
        if len(kinds) < 2:
            yield from inside
            continue
        for kind, label in zip(kinds, _choose_labels(kinds, facts.layers), strict=True):
            part = _Part(block[-1].name, label, min(kind))
            for call in inside:
                if call.layers & kind or not call.layers:
                    parts = (*block[:-1], part, *call.parts[len(block) :])
                    yield replace(call, parts=parts, layers=frozenset(call.layers & kind))


def _list_kinds(calls: Sequence[_Call]) -> list[frozenset[int]]:
    """Sort layers by which calls they make."""
    kinds: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
    for layer in {layer for call in calls for layer in call.layers}:
        kinds[tuple(index for index, call in enumerate(calls) if layer in call.layers)].add(layer)
    return sorted((frozenset(layers) for layers in kinds.values()), key=min)


def _choose_labels(kinds: Sequence[frozenset[int]], layers: Sequence[LayerFacts]) -> list[str]:
    """Say what tells kinds of layers apart, in as few words as do."""
    by_index = {layer.index: layer for layer in layers}
    words: tuple[Callable[[LayerFacts], str], ...] = (
        lambda layer: layer.attention or "",
        lambda layer: layer.mlp.value,
        lambda layer: layer.attention or layer.mlp.value,
        lambda layer: f"{layer.mlp.value}{layer.intermediate_size or ''}",
    )
    for word in words:
        said = [{word(by_index[index]) for index in kind if index in by_index} for kind in kinds]
        labels = [next(iter(found)) for found in said if len(found) == 1]
        if len(labels) == len(kinds) == len(set(labels)) and all(labels):
            return labels
    return [f"layer{min(kind)}" for kind in kinds]


def _name_attention(calls: Iterable[_Call]) -> list[_Call]:
    """Give the kernels that a block calls itself a module of their own in it."""
    held = list(calls)
    blocks = {call.parts[:depth] for call in held for depth in range(len(call.parts))}
    return [
        replace(call, parts=(*call.parts, _Part(_ATTENTION if len(call.parts) == call.inner + 1 else call.kernel)))
        if call.need is not None and call.parts in blocks
        else call
        for call in held
    ]


def _rank(parts: _Parts, inner: int) -> tuple[tuple[int, str, int], ...]:
    """Place a module among the others of its block; tuples of this kind put a block before what is in it."""
    orders = (_OUTSIDE if depth < inner else _IN_LAYER if depth == inner else _IN_BLOCK for depth in range(len(parts)))
    return tuple(
        (order.index(part.name) if part.name in order else len(order), part.name, part.first)
        for order, part in zip(orders, parts, strict=True)
    )


def _spell(parts: _Parts, inner: int) -> str:
    names = [part.name for part in parts]
    return ".".join((*names[:inner], _ANY_LAYER, *names[inner:]) if len(names) > inner else names)


def _choose_keys(all_parts: Collection[_Parts], architecture: str) -> Mapping[_Parts, str]:
    """Name each module by as much of the end of its path as no other's ends in."""
    names = {parts: tuple(_label(part) for part in parts) or (architecture,) for parts in all_parts}
    ends = Counter(end for spelt in names.values() for end in _list_ends(spelt))
    return {
        parts: next((".".join(end) for end in _list_ends(spelt) if ends[end] == 1), ".".join(spelt))
        for parts, spelt in names.items()
    }


def _label(part: _Part) -> str:
    return f"{part.name}_{part.label}" if part.label else part.name


def _list_ends(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield from (names[-length:] for length in range(1, len(names) + 1))
