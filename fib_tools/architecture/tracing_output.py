"""From the recorded graph to the calls of a Structure."""

from __future__ import annotations

import re
from typing import Any

from fib_tools.architecture.structure_schema import LayerGroup, OpCall, OpKind, Stage
from fib_tools.architecture.tracing_graph import Edge, Graph, Node

__all__ = ["collect_ops"]


def collect_ops(graph: Graph, stage: Stage, groups: tuple[LayerGroup, ...], *, first_id: int) -> list[OpCall]:
    """List the claimed calls of a stage; ids go on from `first_id`."""
    claimed = [node for node in graph.nodes if node.kind is not None and not _is_extra(_path(node), groups)]
    numbers: dict[int, int] = {}
    count = first_id
    for node in claimed:
        numbers[node.id] = count
        count += len(_expand(node))
    sources: dict[Edge, int] = {}
    ops: list[OpCall] = []
    for node in claimed:
        feeds = _find_feeds(graph, node, numbers)
        source = _find_source(graph, node)
        shared = None if source is None else sources.setdefault(source, len(sources))
        for attributes, role in _expand(node):
            ops.append(
                _make_op(
                    node, attributes, role, groups, stage=stage, id=first_id + len(ops), source=shared, feeds=feeds
                )
            )
    return ops


def _path(node: Node) -> str:
    return str(node.attributes.get("_path") or node.module)


def _is_extra(path: str, groups: tuple[LayerGroup, ...]) -> bool:
    """Layer 0 also runs where it is no example, so that the example has a residual stream before it."""
    index = _layer_of(path, groups)
    return index is not None and index not in {group.example for group in groups}


def _layer_of(path: str, groups: tuple[LayerGroup, ...]) -> int | None:
    match = re.match(rf"{re.escape(groups[0].path)}\.(\d+)(?=\.|$)", path) if groups else None
    return int(match.group(1)) if match else None


def _make_op(
    node: Node, attributes: dict[str, Any], role: str | None, groups: tuple[LayerGroup, ...], **known: Any
) -> OpCall:
    path = _path(node)
    if attributes.get("parameter"):
        path = f"{path}.{attributes['parameter']}"
    module, group = _locate(path, groups)
    if node.kind is None:
        raise ValueError(f"call {node.id} is not claimed")
    return OpCall(
        kind=node.kind,
        module=module,
        group=group,
        role=role,
        inputs=tuple(node.inputs[:8]),
        outputs=tuple(node.outputs[:8]),
        attributes=attributes,
        **known,
    )


def _locate(path: str, groups: tuple[LayerGroup, ...]) -> tuple[str, int | None]:
    index = _layer_of(path, groups)
    if index is None:
        return path, None
    prefix = groups[0].path
    group = next((number for number, group in enumerate(groups) if index in group.layers), None)
    return f"{prefix}.*{path[len(f'{prefix}.{index}') :]}", group


def _find_source(graph: Graph, node: Node) -> Edge | None:
    edge = node.attributes.get("_source") or (node.reads[0] if node.reads else None)
    return None if edge is None else graph.root(edge)


def _find_feeds(graph: Graph, node: Node, numbers: dict[int, int]) -> tuple[int, ...]:
    ends = graph.forward(node, stop=lambda other: other.kind is not None)
    return tuple(numbers[end.id] for end in ends if end.id in numbers)


def _expand(node: Node) -> list[tuple[dict[str, Any], str | None]]:
    """Give the attributes of each call that a node stands for; the experts are one for each weight."""
    if node.op == "experts":
        return _expand_experts(node)
    if node.kind is OpKind.ATTENTION:
        return [(_attention_attributes(node), node.role)]
    if node.kind is OpKind.ROPE:
        return [(_rope_attributes(node), node.role)]
    return [({name: value for name, value in node.attributes.items() if not name.startswith("_")}, node.role)]


def _attention_attributes(node: Node) -> dict[str, Any]:
    given = node.attributes
    mask = given.get("_mask") or {}
    plain = {name: value for name, value in given.items() if not name.startswith("_") and name != "declared_window"}
    window = mask.get("window")
    if not mask:
        window = given.get("declared_window")
    return {**plain, "window": window, "chunk": mask.get("chunk"), "causal": mask.get("causal", given["causal"])}


def _rope_attributes(node: Node) -> dict[str, Any]:
    plain = {name: value for name, value in node.attributes.items() if not name.startswith("_")}
    return {**plain, "tensors": len(node.outputs)}


def _expand_experts(node: Node) -> list[tuple[dict[str, Any], str | None]]:
    hidden = node.inputs[0].shape[-1]
    weights = {name: shape for name, shape in node.attributes["_weights"].items() if len(shape) == 3}
    has_bias = any(len(shape) == 2 for shape in node.attributes["_weights"].values())
    calls: list[tuple[dict[str, Any], str | None]] = []
    names = list(weights)
    for position, name in enumerate(names):
        experts, first, second = weights[name]
        is_last = position == len(names) - 1
        n, k = _orient(first, second, hidden=hidden, is_last=is_last)
        role = "expert_down" if is_last else _first_role(len(names), n, weights[names[-1]], hidden)
        attributes = {
            "experts": experts, "n": n, "k": k, "bias": has_bias, "parameter": name,
            "activation": _name_activation(node.inner), "top_k": _top_k(node),
        }  # fmt: skip
        calls.append((attributes, role))
    return calls


def _orient(first: int, second: int, *, hidden: int, is_last: bool) -> tuple[int, int]:
    """Tell n from k: the first weights read the hidden state, the last one writes it."""
    if is_last:
        return (first, second) if first == hidden else (second, first)
    return (first, second) if second == hidden else (second, first)


def _first_role(count: int, n: int, down: tuple[int, ...], hidden: int) -> str:
    width = next((size for size in down[1:] if size != hidden), hidden)
    if count == 2:
        return "expert_gate_up" if n == 2 * width else "expert_up"
    return "expert_in"


def _top_k(node: Node) -> int | None:
    widths = [tensor.shape[-1] for tensor in node.inputs[1:] if tensor.shape]
    return min(widths) if widths else None


def _name_activation(inner: set[str]) -> str | None:
    if "clamp" in inner and "sigmoid" in inner:
        return "swiglu_oai"
    if "relu" in inner:
        return "relu2" if "pow" in inner or "square" in inner else "relu"
    return next((name for name in ("silu", "gelu", "sigmoid") if name in inner), None)
