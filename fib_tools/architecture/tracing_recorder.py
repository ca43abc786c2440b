"""Watching every aten call of a forward pass, and building the graph from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

from fib_tools.architecture.structure_schema import OpKind, TensorShape
from fib_tools.architecture.tracing_graph import VIEW_OPS, Edge, Graph, Node

__all__ = ["Recorder", "describe", "flatten", "open_dispatch_mode", "pause_recording"]


class Recorder:
    """Holds the graph of one pass, and knows which tensor came from which node."""

    def __init__(self, names: dict[int, str]) -> None:
        """Take the names of parameters and buffers by the id of their tensor."""
        self.graph = Graph()
        self.modules: list[str] = [""]
        self._names = names
        self._edges: dict[int, Edge] = {}
        self._alive: list[Any] = []
        """Ids are only unique among living tensors; meta tensors cost nothing."""
        self._bases: dict[int, Any] = {}
        """The tensor that a view looks into, by the id of the view."""
        self._region: Node | None = None
        self.tokens = 1
        """What a position table is told when it asks for the value of a position, which a meta tensor has not."""

    @property
    def is_in_region(self) -> bool:
        """True while a claimed call runs."""
        return self._region is not None

    def edge_of(self, tensor: Any) -> Edge:
        """Find where a tensor comes from; one not seen before is a leaf."""
        edge = self._edges.get(id(tensor))
        if edge is not None:
            return edge
        name = self._names.get(id(tensor))
        node = self.graph.add("input" if name is None else "parameter", module="")
        node.parameter = name
        node.outputs = [describe(tensor)]
        return self._bind(tensor, Edge(node.id))

    def _bind(self, tensor: Any, edge: Edge) -> Edge:
        self._edges[id(tensor)] = edge
        self._alive.append(tensor)
        return edge

    def record(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one aten call and note it."""
        full_name = func._schema.name.removeprefix("aten::")  # noqa: SLF001  # the operation's only name
        name = full_name.rstrip("_")
        if full_name == "_local_scalar_dense" and self._region is not None and self._region.op == "rotary_table":
            return self.tokens
        result = func(*args, **kwargs)
        tensors = list(flatten((args, kwargs)))
        if self._region is not None:
            self._record_inside(name, tensors, result)
            return result
        reads = [self.edge_of(tensor) for tensor in tensors]
        node = self.graph.add(name, module=self.modules[-1], reads=reads)
        node.inputs = [describe(tensor) for tensor in tensors]
        node.scalars = tuple(value for value in args if isinstance(value, (int, float, bool)))
        if name in VIEW_OPS and node.reads:
            node.parameter = self.graph.nodes[node.reads[0].node].parameter
        self._bind_outputs(node, result)
        if tensors and full_name.endswith("_"):
            self._write_through(tensors[0], node)
        elif name in VIEW_OPS and tensors:
            base = self._bases.get(id(tensors[0]), tensors[0])
            self._bases.update((id(view), base) for view in flatten(result))
        return result

    def _write_through(self, written: Any, node: Node) -> None:
        """Make a tensor depend on what was written into a view of it."""
        base = self._bases.get(id(written))
        if base is not None:
            node.reads.append(self.edge_of(base))
            self._bind(base, Edge(node.id))

    def _record_inside(self, name: str, tensors: list[Any], result: Any) -> None:
        region = self._region
        if region is None:
            return
        region.inner.add(name)
        for tensor in tensors:
            edge = self._edges.get(id(tensor))
            if (edge is None or edge.node != region.id) and id(tensor) in self._names:
                region.attributes.setdefault("_parameters", []).append(self._names[id(tensor)])
        for tensor in flatten(result):
            self._bind(tensor, Edge(region.id))

    def _bind_outputs(self, node: Node, result: Any) -> None:
        for index, tensor in enumerate(flatten(result)):
            node.outputs.append(describe(tensor))
            self._bind(tensor, Edge(node.id, index))

    @contextlib.contextmanager
    def inside(self, module: str) -> Iterator[None]:
        """Attribute the calls of a block to a module."""
        self.modules.append(module)
        try:
            yield
        finally:
            self.modules.pop()

    def run_region(
        self, op: str, kind: OpKind | None, call: Callable[[], Any], *, reads: list[Any], attributes: dict[str, Any]
    ) -> Any:
        """Run a call that is understood as a whole; `reads` are its tensors in the order that matters.

        A region inside another is part of it.
        """
        if self._region is not None:
            return call()
        edges = [self.edge_of(tensor) for tensor in reads]
        node = self.graph.add(op, module=self.modules[-1], reads=edges)
        node.kind = kind
        node.is_explained = True
        node.attributes = dict(attributes)
        node.inputs = [describe(tensor) for tensor in reads]
        self._region = node
        try:
            result = call()
        finally:
            self._region = None
        self._bind_outputs(node, result)
        return result


def describe(tensor: Any) -> TensorShape:
    """Note a tensor's shape and dtype."""
    return TensorShape(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


def flatten(value: Any) -> Iterator[Any]:
    """List the tensors in nested tuples, lists and dicts, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from flatten(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from flatten(item)


def open_dispatch_mode(record: Callable[[Any, Any, dict[str, Any]], Any]) -> Any:
    """Make a context in which `record` runs every aten call."""
    from torch.utils._python_dispatch import TorchDispatchMode

    def dispatch(_self: Any, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return record(func, args, kwargs or {})

    # A class of torch's, made here because torch must not be imported with this module.
    return type("RecordingMode", (TorchDispatchMode,), {"__torch_dispatch__": dispatch})()


def pause_recording() -> contextlib.AbstractContextManager[Any]:
    """Make a context whose calls no dispatch mode sees: probes are not part of the model."""
    from torch.utils._python_dispatch import _disable_current_modes

    return cast("contextlib.AbstractContextManager[Any]", _disable_current_modes())
