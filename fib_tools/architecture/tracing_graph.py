"""The dataflow of one forward pass: nodes for calls, edges for the tensors between them. Holds no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fib_tools.architecture.structure_schema import OpKind, TensorShape

__all__ = ["LEAF_OPS", "VIEW_OPS", "Edge", "Graph", "Node"]

LEAF_OPS = frozenset({"parameter", "input"})
VIEW_OPS = frozenset(
    {
        "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice",
        "select", "split", "split_with_sizes", "chunk", "unbind", "alias", "detach", "clone", "_to_copy", "contiguous",
        "_reshape_alias", "as_strided", "repeat", "repeat_interleave", "unfold", "narrow", "view_as_complex",
        "view_as_real", "lift_fresh", "to",
    }
)  # fmt: skip
"""Operations that move or cast values and compute nothing."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One output of a node."""

    node: int
    output: int = 0


@dataclass(slots=True)
class Node:
    """A call: an aten operation, a claimed region, or a leaf (a parameter, an input)."""

    id: int
    op: str
    module: str
    reads: list[Edge] = field(default_factory=list)
    kind: OpKind | None = None
    """Set when the call is claimed."""
    is_explained: bool = False
    """True for calls that a claimed call stands for."""
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: list[TensorShape] = field(default_factory=list)
    outputs: list[TensorShape] = field(default_factory=list)
    scalars: tuple[Any, ...] = ()
    parameter: str | None = None
    """The parameter that this node is, or is a mere view of."""
    inner: set[str] = field(default_factory=set)
    """Names of the operations inside a region."""
    role: str | None = None


class Graph:
    """Nodes in the order of their calls; reads always point to earlier nodes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._readers: dict[int, list[int]] | None = None

    def add(self, op: str, *, module: str, reads: list[Edge] | None = None) -> Node:
        """Append a node."""
        node = Node(id=len(self.nodes), op=op, module=module, reads=reads or [])
        self.nodes.append(node)
        self._readers = None
        return node

    def readers(self, node: int) -> list[int]:
        """List the nodes that read any output of a node."""
        if self._readers is None:
            self._readers = {}
            for reader in self.nodes:
                for edge in reader.reads:
                    self._readers.setdefault(edge.node, []).append(reader.id)
        return self._readers.get(node, [])

    def claimed(self, kind: OpKind) -> Iterator[Node]:
        """List the claimed nodes of a kind, in order."""
        return (node for node in self.nodes if node.kind is kind)

    def root(self, edge: Edge) -> Edge:
        """Go back through views to the output that computed these values."""
        seen = edge
        while True:
            node = self.nodes[seen.node]
            if node.kind is not None or node.op not in VIEW_OPS or not node.reads:
                return seen
            seen = node.reads[0]

    def back(self, edges: list[Edge], *, stop: Callable[[Node], bool], limit: int = 4000) -> list[Node]:
        """Collect the nodes that lead to these outputs, up to and with those where `stop` holds.

        RoPE is passed straight: its i-th output comes from its i-th input.
        """
        found: dict[int, Node] = {}
        seen: set[Edge] = set()
        queue = list(edges)
        while queue and len(found) < limit:
            edge = queue.pop()
            if edge in seen:
                continue
            seen.add(edge)
            node = self.nodes[edge.node]
            found[node.id] = node
            if not stop(node):
                queue += self.passed(edge)
        return sorted(found.values(), key=lambda node: node.id)

    def passed(self, edge: Edge) -> list[Edge]:
        """List what an output depends on."""
        node = self.nodes[edge.node]
        if node.kind is OpKind.ROPE and edge.output < len(node.reads):
            return [node.reads[edge.output]]
        return node.reads

    def forward(self, start: Node, *, stop: Callable[[Node], bool], limit: int = 4000) -> list[Node]:
        """Collect the nodes that depend on a node, up to and with those where `stop` holds."""
        found: dict[int, Node] = {}
        queue = list(self.readers(start.id))
        while queue and len(found) < limit:
            identifier = queue.pop()
            if identifier in found:
                continue
            node = self.nodes[identifier]
            found[identifier] = node
            if not stop(node):
                queue += self.readers(identifier)
        return sorted(found.values(), key=lambda node: node.id)
