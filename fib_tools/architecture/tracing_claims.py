"""Which recorded calls are understood: linears by their parameter, routing and indexing by dataflow; the rest is unexplained."""

from __future__ import annotations

from typing import Any

from fib_tools.architecture.structure_schema import OpKind
from fib_tools.architecture.tracing_graph import LEAF_OPS, VIEW_OPS, Edge, Graph, Node
from fib_tools.model.kernel import Unexplained

__all__ = ["HEAVY_OPS", "claim_calls", "list_unexplained"]

_MATMULS = frozenset({"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv"})
_PICKS = frozenset({"topk", "sort", "argsort", "kthvalue", "max", "argmax"})
HEAVY_OPS = (
    _MATMULS
    | _PICKS - {"max"}
    | frozenset(
        {
            "_softmax", "_log_softmax", "convolution", "embedding", "cumsum", "cumprod", "_grouped_mm", "dot",
            "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention", "linalg_solve_triangular",
            "_scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention", "_fft_r2c", "nonzero",
            "_embedding_bag", "histc", "bincount",
        }
    )
)  # fmt: skip
"""Operations that cost a kernel of their own; one outside every claimed call is reported."""
_FEW = 16
"""Up to here a product or softmax is a sum of terms rather than a kernel; hyper-connections have 4 streams."""
_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "softplus": "softplus",
    "leaky_relu": "leaky_relu",
}


def claim_calls(graph: Graph) -> None:
    """Claim what dataflow explains, in an order where each step may rely on those before it."""
    for node in graph.nodes:
        if node.kind is None and not node.is_explained:
            _claim_by_parameter(graph, node)
    for experts in list(graph.claimed(OpKind.GROUPED_LINEAR)):
        if experts.op == "experts":
            _claim_routing(graph, experts)
    for attention in list(graph.claimed(OpKind.ATTENTION)):
        _claim_index(graph, attention)
    for node in graph.nodes:
        _claim_activation(graph, node)
        _claim_mixing(graph, node)


def _claim_mixing(graph: Graph, node: Node) -> None:
    """Claim softmaxes and products over a handful of values: no engine gives them to a GEMM or attention kernel."""
    if node.is_explained or not node.inputs:
        return
    if node.op == "bmm" and node.inputs[0].shape[-1] <= _FEW:
        _claim(node, OpKind.MIXING, function="bmm", width=node.inputs[0].shape[-1])
    elif node.op == "_softmax" and (node.outputs[0].shape[-1] <= _FEW or _is_pooling(graph, node)):
        _claim(node, OpKind.MIXING, function="softmax", width=node.outputs[0].shape[-1])


def _is_pooling(graph: Graph, softmax: Node) -> bool:
    """A softmax that weights values in a sum, without a matrix product."""
    products = [graph.nodes[reader] for reader in _through_views(graph, softmax)]
    return bool(products) and all(
        product.op == "mul" and any(graph.nodes[end].op == "sum" for end in _through_views(graph, product))
        for product in products
    )


def _claim_by_parameter(graph: Graph, node: Node) -> None:
    operands = [graph.nodes[edge.node].parameter for edge in node.reads]
    if node.op == "embedding" and operands[:1] != [None]:
        _claim(node, OpKind.EMBEDDING, vocab=node.inputs[0].shape[0], size=node.inputs[0].shape[-1])
        node.parameter = None
        node.attributes["_path"] = _module_of(operands[0])
    elif node.op == "convolution" and len(operands) > 1 and operands[1] is not None:
        weight = node.inputs[1].shape
        _claim(node, OpKind.CONV1D, channels=weight[0], width=weight[-1], bias=len(operands) > 2)
        node.attributes["_path"] = _module_of(operands[1])
    elif node.op in _MATMULS and any(operands[-2:]):
        _claim_linear(node, operands)


def _claim_linear(node: Node, operands: list[str | None]) -> None:
    """A matrix product with a parameter: addmm and baddbmm carry the bias in front."""
    has_bias = node.op in ("addmm", "baddbmm", "addbmm")
    first = 1 if has_bias else 0
    is_left = operands[first] is not None and operands[first + 1] is None
    weight = node.inputs[first if is_left else first + 1].shape
    n, k = (weight[-2], weight[-1]) if is_left else (weight[-1], weight[-2])
    name = operands[first] if is_left else operands[first + 1]
    attributes: dict[str, Any] = {"n": n, "k": k, "bias": has_bias}
    if len(weight) == 3 and weight[0] > 1:
        attributes["batches"] = weight[0]
    _claim(node, OpKind.LINEAR, **attributes)
    node.attributes["_path"] = _module_of(name)
    node.attributes["_source"] = node.reads[first + 1 if is_left else first]


def _claim(node: Node, kind: OpKind, **attributes: Any) -> None:
    node.kind = kind
    node.is_explained = True
    node.attributes.update(attributes)


def _module_of(parameter: str | None) -> str:
    path, _, last = (parameter or "").rpartition(".")
    return path if last in ("weight", "bias") else (parameter or "")


def _stops(node: Node) -> bool:
    return node.kind is not None or node.op in LEAF_OPS


def _claim_routing(graph: Graph, experts: Node) -> None:
    """Claim what lies between the router's linear and the experts: scores, choice, weights."""
    count = next(iter(experts.attributes["_weights"].values()))[0]
    choices = [edge for edge in experts.reads if _is_choice(graph, edge, count)]
    between = graph.back(choices, stop=_stops)
    routers = [node for node in between if node.kind is OpKind.LINEAR]
    steps = [node for node in between if node.kind is None and node.op not in LEAF_OPS]
    picks = [node for node in steps if node.op in _PICKS]
    if not routers or not steps:
        return
    for node in steps:
        node.is_explained = True
    router = routers[-1]
    router.role = "router"
    last = steps[-1]
    _claim(
        last,
        OpKind.ROUTING,
        steps=" ".join(node.op for node in steps if node.op not in VIEW_OPS),
        experts=router.attributes["n"],
        top_k=_top_k(graph, choices, picks),
        n_group=_count_groups(steps, router.attributes["n"]),
        routing=_name_routing(graph, steps, router.attributes["n"]),
    )
    last.attributes["_path"] = last.module
    last.attributes["_source"] = Edge(router.id)


def _is_choice(graph: Graph, edge: Edge, experts: int) -> bool:
    """Tell whether an input of the experts comes through a topk or from scores, not straight from the hidden state."""
    near = graph.back([edge], stop=_stops)
    return any(node.op in _PICKS or (node.kind is OpKind.LINEAR and node.attributes["n"] == experts) for node in near)


def _top_k(graph: Graph, choices: list[Edge], picks: list[Node]) -> int | None:
    counts = [_chosen(pick) for pick in picks if pick.op == "topk"]
    if counts:
        return counts[-1]
    widths = [graph.nodes[edge.node].outputs[edge.output].shape[-1] for edge in choices]
    return min(widths) if widths else None


def _count_groups(steps: list[Node], experts: int) -> int | None:
    """Find the groups that scores were arranged in, as [tokens, groups, experts of a group]."""
    shapes = [output.shape for node in steps for output in node.outputs if len(output.shape) == 3]
    found = [shape[1] for shape in shapes if shape[1] * shape[2] == experts]
    return found[0] if found else None


def _name_routing(graph: Graph, steps: list[Node], experts: int) -> str:
    ops = [node.op for node in steps]
    first_pick = next((index for index, op in enumerate(ops) if op in _PICKS), None)
    if first_pick is None:
        return "hash"  # the experts come from a table of tokens, the scores only weight them
    before, after = ops[:first_pick], ops[first_pick:]
    has_bias = any(node.op == "add" and any(graph.nodes[edge.node].parameter for edge in node.reads) for node in steps)
    has_groups = ops.count("topk") > 1 and _count_groups(steps, experts) != 1
    renormalises = "sum" in after and "div" in after
    if "softplus" in ops and "sqrt" in ops:
        return "sqrtsoftplus_bias" if has_bias else "sqrtsoftplus"
    if ops.count("_softmax") > 1 and "topk" not in ops:
        return "sparsemixer"
    if "sigmoid" in before:
        if has_bias:
            return "ds" if has_groups else "sigmoid_bias"
        return "sigmoid"
    if "_softmax" in before:
        if has_groups:
            return "softmax_group"
        return "renormalize" if renormalises else "default"
    if "sigmoid" in after:
        return "llama4"
    return "renormalize" if "_softmax" in after else "topk"


def _claim_index(graph: Graph, attention: Node) -> None:
    """Claim what chooses the tokens of sparse attention: from linears to a topk that ends in the mask or the keys."""
    near = graph.back(attention.reads[1:], stop=_stops)
    for pick in [node for node in near if node.op in _PICKS and node.kind is None]:
        inner = graph.back([Edge(pick.id)], stop=_stops)
        steps = [node for node in inner if node.kind is None and node.op not in LEAF_OPS]
        for node in steps:
            node.is_explained = True
        products = [node for node in steps if node.op in _MATMULS]
        shape = products[0].inputs[0].shape if products else ()
        _claim(pick, OpKind.SPARSE_INDEX, topk=_chosen(pick))
        if shape:
            pick.attributes["head_dim"] = shape[-1]
        pick.attributes["_path"] = pick.module


def _chosen(pick: Node) -> int | None:
    """The k of a topk; None where it was cut to the few tokens of the trace."""
    k = next((value for value in pick.scalars if isinstance(value, int) and not isinstance(value, bool)), None)
    return None if pick.inputs and k == pick.inputs[0].shape[-1] else k


def _claim_activation(graph: Graph, node: Node) -> None:
    if node.kind is not None or node.is_explained or node.op not in _ACTIVATIONS:
        return
    producer = _single_linear(graph, Edge(node.id))
    if producer is None:
        return
    function = _ACTIVATIONS[node.op]
    if function == "relu" and any(graph.nodes[reader].op == "pow" for reader in graph.readers(node.id)):
        function = "relu2"
    gates = [
        reader
        for reader in (graph.nodes[identifier] for identifier in _through_views(graph, node))
        if reader.op == "mul" and len(reader.reads) > 1
    ]
    _claim(node, OpKind.ACTIVATION, function=function, is_gated=bool(gates), size=node.outputs[0].shape[-1])
    node.attributes["_path"] = node.module
    node.attributes["_source"] = graph.root(node.reads[0])
    if gates:
        node.attributes["_gate"] = gates[0].id


def _through_views(graph: Graph, node: Node) -> list[int]:
    ends, queue = [], list(graph.readers(node.id))
    while queue:
        identifier = queue.pop()
        if graph.nodes[identifier].op in VIEW_OPS and graph.nodes[identifier].kind is None:
            queue += graph.readers(identifier)
        else:
            ends.append(identifier)
    return ends


def _single_linear(graph: Graph, edge: Edge) -> Node | None:
    near = graph.back(graph.nodes[edge.node].reads, stop=_stops)
    linears = [node for node in near if node.kind is OpKind.LINEAR]
    return linears[0] if len(linears) == 1 else None


def list_unexplained(graph: Graph) -> list[Unexplained]:
    """List the heavy operations that no claimed call stands for."""
    return [
        Unexplained(
            operation=f"aten.{node.op}",
            module=node.module or "the model",
            detail=" x ".join(str(list(tensor.shape)) for tensor in node.inputs),
        )
        for node in graph.nodes
        if node.op in HEAVY_OPS and not node.is_explained and not _is_trivial(graph, node)
    ]


def _is_trivial(graph: Graph, node: Node) -> bool:
    """Position numbers and masks are counted, not computed: nothing that they read was ever a hidden state."""
    near = graph.back(node.reads, stop=lambda other: other.kind is not None)
    return not any(other.kind is not None for other in near)
