from __future__ import annotations

from fib_tools.architecture.structure_schema import OpKind
from fib_tools.architecture.tracing_graph import Edge, Graph


def test_root_looks_through_views_only() -> None:
    graph = Graph()
    graph.add("mm", module="")
    graph.add("view", module="", reads=[Edge(0)])
    graph.add("mul", module="", reads=[Edge(1)])
    graph.add("transpose", module="", reads=[Edge(2)])
    assert graph.root(Edge(1)) == Edge(0)
    assert graph.root(Edge(3)) == Edge(2)


def test_rope_joins_no_queries_with_keys() -> None:
    graph = Graph()
    graph.add("q", module="")
    graph.add("k", module="")
    graph.add("rope", module="", reads=[Edge(0), Edge(1)]).kind = OpKind.ROPE
    assert [node.op for node in graph.back([Edge(2, 1)], stop=lambda _node: False)] == ["k", "rope"]


def test_forward_ends_where_it_is_told_to() -> None:
    graph = Graph()
    graph.add("start", module="")
    graph.add("wall", module="", reads=[Edge(0)])
    graph.add("behind", module="", reads=[Edge(1)])
    found = graph.forward(graph.nodes[0], stop=lambda node: node.op == "wall")
    assert [node.op for node in found] == ["wall"]
