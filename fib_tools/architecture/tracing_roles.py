"""The role of each linear, told by what it reads and what reads it; names of modules decide nothing."""

from __future__ import annotations

from fib_tools.architecture.structure_schema import OpKind
from fib_tools.architecture.tracing_graph import LEAF_OPS, VIEW_OPS, Edge, Graph, Node

__all__ = ["assign_roles", "mark_adds"]

_MLP_ACTIVATIONS = ("silu", "gelu", "relu", "relu2")
_MIXERS = (OpKind.ATTENTION, OpKind.LINEAR_ATTENTION)


def assign_roles(graph: Graph) -> None:
    """Give every linear the role its dataflow shows; one without stays without."""
    for mixer in graph.nodes:
        if mixer.kind is OpKind.ATTENTION:
            _assign_attention(graph, mixer)
    for index in graph.claimed(OpKind.SPARSE_INDEX):
        for node in _feeding(graph, index.reads):
            node.role = node.role or "indexer"
    for mixing in graph.claimed(OpKind.MIXING):
        weights = mixing.reads if mixing.attributes["function"] == "softmax" else []
        for node in _feeding(graph, weights):
            node.role = node.role or "mixing"
    for mixer in graph.nodes:
        if mixer.kind is OpKind.LINEAR_ATTENTION:
            _assign_around(graph, mixer)
    for activation in graph.claimed(OpKind.ACTIVATION):
        _assign_mlp(graph, activation)
    _assign_head(graph)


def _feeding(graph: Graph, edges: list[Edge]) -> list[Node]:
    """Find the linears whose outputs reach these edges without another linear between."""
    stops = (OpKind.LINEAR, OpKind.EMBEDDING, *_MIXERS, OpKind.SPARSE_INDEX, OpKind.GROUPED_LINEAR)
    near = graph.back(edges, stop=lambda node: node.kind in stops or node.op in LEAF_OPS)
    return [node for node in near if node.kind is OpKind.LINEAR]


def _assign_attention(graph: Graph, attention: Node) -> None:
    q, k, v = ({node.id for node in _feeding(graph, [edge])} for edge in attention.reads[:3])
    for identifier in sorted(q | k | v):
        node = graph.nodes[identifier]
        if node.role is None:
            node.role = _attention_role(identifier in q, identifier in k, identifier in v)
    for identifier in sorted(q | k | v):
        _assign_low_rank(graph, graph.nodes[identifier])
    first = next(iter(_next_linears(graph, attention)), None)
    if first is not None and first.role is None:
        first.role = "o"
        last = next(iter(_next_linears(graph, first)), None)
        if last is not None and last.role is None and _is_direct(graph, first, last):
            first.role, last.role = "o_a", "o_b"


def _attention_role(is_q: bool, is_k: bool, is_v: bool) -> str:  # noqa: FBT001  # three equal flags
    if is_q:
        return "qkv" if is_k and is_v else "q" if not is_k and not is_v else "qk"
    if is_k:
        return "kv" if is_v else "k"
    return "v"


def _assign_low_rank(graph: Graph, node: Node) -> None:
    """Two linears with only a norm between them are one projection of low rank."""
    source = node.attributes.get("_source")
    if source is None or node.role not in ("q", "kv", "qkv"):
        return
    before = [other for other in _feeding(graph, [source]) if _is_direct(graph, other, node)]
    if len(before) == 1 and before[0].id != node.id:
        base = node.role
        node.role = f"{base}_b"
        if before[0].role in (None, "k", "kv", "q"):
            before[0].role = f"{base}_a"


def _is_direct(graph: Graph, first: Node, second: Node) -> bool:
    """Tell whether the input of `second` is the output of `first`, through norms and views only."""
    source = second.attributes.get("_source")
    for _ in range(100):
        if source is None:
            return False
        node = graph.nodes[source.node]
        if node.id == first.id:
            return True
        if node.kind is None and node.op == "cat":
            source = node.reads[-1]  # what the KV cache appends
            continue
        if node.kind is not OpKind.NORM and (node.kind is not None or node.op not in VIEW_OPS):
            return False
        source = node.reads[0] if node.reads else None
    return False


def _next_linears(graph: Graph, node: Node) -> list[Node]:
    stops = (OpKind.LINEAR, *_MIXERS, OpKind.GROUPED_LINEAR)
    return [end for end in graph.forward(node, stop=lambda other: other.kind in stops) if end.kind is OpKind.LINEAR]


def _assign_around(graph: Graph, mixer: Node) -> None:
    for node in _feeding(graph, mixer.reads):
        if node.role is None:
            node.role = "in_proj"
    first = next(iter(_next_linears(graph, mixer)), None)
    if first is not None and first.role is None:
        first.role = "out_proj"
        source = first.attributes.get("_source")
        for node in _feeding(graph, [source] if source is not None else []):
            if node.role is None:
                node.role = "in_proj"


def _assign_mlp(graph: Graph, activation: Node) -> None:
    first = _feeding(graph, activation.reads[:1])
    if len(first) != 1 or first[0].role is not None:
        return
    gate = activation.attributes.get("_gate")
    if gate is None and activation.attributes["function"] not in _MLP_ACTIVATIONS:
        return
    if gate is None:
        _assign_down(graph, activation)
        first[0].role = "up"
        return
    product = graph.nodes[gate]
    both = {node.id for node in _feeding(graph, product.reads)}
    others = [graph.nodes[identifier] for identifier in both if identifier != first[0].id]
    if first[0].attributes.get("n") == 1:
        first[0].role = "shared_gate"
        return
    if not others:
        first[0].role = "gate_up"
    elif len(others) == 1 and others[0].attributes.get("n") == first[0].attributes.get("n"):
        first[0].role, others[0].role = "gate", "up"
    else:
        return
    _assign_down(graph, product)


def _assign_down(graph: Graph, node: Node) -> None:
    down = next(iter(_next_linears(graph, node)), None)
    if down is not None and down.role is None:
        down.role = "down"


def _assign_head(graph: Graph) -> None:
    linears = list(graph.claimed(OpKind.LINEAR))
    if linears and linears[-1].role is None:
        linears[-1].role = "lm_head"


def mark_adds(graph: Graph) -> None:
    """Note at each norm whether its input is the sum of two hidden states, which engines fuse."""
    for norm in graph.claimed(OpKind.NORM):
        root = graph.nodes[graph.root(norm.reads[0]).node] if norm.reads else None
        norm.attributes["follows_add"] = bool(
            root is not None
            and root.op == "add"
            and len(root.reads) == 2
            and all(graph.nodes[edge.node].outputs[edge.output].shape == root.outputs[0].shape for edge in root.reads)
        )
