"""Recording a forward as spans that nest: model, layers, modules, operators, and each step that torch executes.

Operators are what `observe` sees (attention, norms, products ...), and what moves data between them; steps are torch's own
operations, those that only look at memory in another way left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Unmapped
from fib_tools.capture.forward.functions import name_dtype
from fib_tools.capture.forward.memory import LiveMemory
from fib_tools.capture.forward.watch import Operator, Watch, settle
from fib_tools.capture.timeline import AXIS, Kind, Span, TensorNote, Value

if TYPE_CHECKING:
    import torch

__all__ = ["Draft", "Recorder", "name_inputs"]

_MOST_TENSORS = 16
"""Noted of one span's inputs or outputs."""


@dataclass(kw_only=True, slots=True)
class Draft:
    """A span while it is open, and after."""

    name: str
    kind: Kind
    start: int
    parent: int | None
    end: int = 0
    inputs: tuple[TensorNote, ...] = ()
    outputs: tuple[TensorNote, ...] = ()
    details: dict[str, Value] = field(default_factory=dict)

    def finish(self) -> Span:
        """Make it a span."""
        return Span(
            name=self.name,
            kind=self.kind,
            start_ns=self.start,
            end_ns=self.end,
            parent=self.parent,
            inputs=self.inputs,
            outputs=self.outputs,
            details=self.details,
        )


class Recorder(Watch):
    """A watch that notes when each call began and ended, and which tensors it read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.drafts: list[Draft] = []
        self.is_on = True
        """Layers that nobody asked for are passed through."""
        self.memory = LiveMemory()
        self.wait: Callable[[], None] | None = None
        """Called before a step ends: on a device that works behind the host's back, until it is done."""
        self._is_aside = False
        self._stack: list[int] = []
        self._storages: dict[int, int] = {}
        self._next_storage = 0

    def open(self, name: str, kind: Kind, inputs: Iterable[tuple[str, Any]] = ()) -> Draft:
        """Begin a span inside the one that is open."""
        notes = self.note_tensors(inputs)
        draft = Draft(
            name=name,
            kind=kind,
            start=time.perf_counter_ns(),
            parent=self._stack[-1] if self._stack else None,
            inputs=notes,
        )
        self._stack.append(len(self.drafts))
        self.drafts.append(draft)
        return draft

    def close(self, draft: Draft, outputs: Any = None) -> None:
        """End a span, and with it those that an error left open inside it."""
        draft.end = time.perf_counter_ns()
        while self._stack:
            open_ = self.drafts[self._stack.pop()]
            if open_ is draft:
                break
            open_.end = draft.end
        draft.outputs = self.note_tensors(_name_all("output", outputs))

    @property
    def parent(self) -> Draft | None:
        """The span that is open."""
        return self.drafts[self._stack[-1]] if self._stack else None

    def add_step(
        self, name: str, start: int, inputs: Iterable[tuple[str, Any]], outputs: Any, **details: Value
    ) -> None:
        """Note a step that has ended; what it wrote lies in memory that holds something new."""
        notes = self.note_tensors(inputs)
        for _, tensor in _name_all("output", outputs):
            self._next_storage += 1
            self._storages[_address(tensor)] = self._next_storage
        parent = self._stack[-1] if self._stack else None
        draft = Draft(name=name, kind="step", start=start, parent=parent, inputs=notes, end=time.perf_counter_ns())
        draft.outputs = self.note_tensors(_name_all("output", outputs))
        draft.details = details
        self.drafts.append(draft)

    def wrap(self, operator: Operator, original: Callable[..., Any]) -> Callable[..., Any]:
        """Have every call of a function recorded: each has a span of its own, also one that is like another."""

        @wraps(original)
        def recorded(*inputs: Any, **options: Any) -> Any:
            if self.is_blind or not self.is_on:
                return original(*inputs, **options)
            draft = self.open(operator.name, "operator", name_inputs(inputs, options))
            result = None
            try:
                result = super(Recorder, self).call_inside(original, *inputs, **options)
            finally:
                self.close(draft, result)
            draft.details |= self.call_inside(_describe, operator, result, inputs, options)
            return result

        return recorded

    def call_inside(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function that is no part of the model, and note nothing of it."""
        before = self.is_on, self._is_aside
        self.is_on, self._is_aside = False, True
        try:
            return super().call_inside(function, *arguments, **options)
        finally:
            self.is_on, self._is_aside = before

    def note_memory(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count memory that an operation of the model returned, recorded or not."""
        if not self._is_aside:
            self.memory.add(tensors)

    def note_tensors(self, named: Iterable[tuple[str, Any]]) -> tuple[TensorNote, ...]:
        """Note the tensors among some values."""
        return tuple(self._note(name, tensor) for name, tensor in list(named)[:_MOST_TENSORS])

    def _note(self, name: str, tensor: torch.Tensor) -> TensorNote:
        address = _address(tensor)
        if address not in self._storages:
            self._next_storage += 1
            self._storages[address] = self._next_storage
        return TensorNote(
            name=name,
            shape=tuple(tensor.shape),
            dtype=name_dtype(tensor.dtype),
            strides=tuple(tensor.stride()),
            bytes=tensor.numel() * tensor.element_size(),
            key=self._storages[address],
        )


def _address(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage") and hasattr(value, "stride")


def _name_all(name: str, values: Any) -> list[tuple[str, Any]]:
    """Name the tensors of a result: `output`, or `output0` and so on."""
    if _is_tensor(values):
        return [(name, values)]
    found = [value for value in values if _is_tensor(value)] if isinstance(values, (tuple, list)) else []
    return [(name, found[0])] if len(found) == 1 else [(f"{name}{at}", value) for at, value in enumerate(found)]


def name_inputs(inputs: Iterable[Any], options: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Name the tensors of a call: `input0` and so on, then options as they are called."""
    found = [(f"input{at}", value) for at, value in enumerate(inputs) if _is_tensor(value)]
    return [*found, *((name, value) for name, value in options.items() if _is_tensor(value))]


def _describe(operator: Operator, result: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Value]:
    """Say which Definition a call is one of."""
    from fib_tools.errors import FibError
    from fib_tools.op_types.registry import get_kernel_type

    call = settle(operator.describe(operator.key(*inputs, **options), result, *inputs, **options))
    if call is None:
        return {}
    if isinstance(call, Unmapped):
        return {"unmapped": call.reason}
    kernel = get_kernel_type(call.kernel)
    details: dict[str, Value] = {"op_type": kernel.op_type, "kernel": call.kernel}
    details |= {f"{AXIS}{name}": length for name, length in call.axes.items()}
    try:
        details["definition"] = kernel.build(call.parameters).name
    except (FibError, ValueError):  # experts, whose choice happens elsewhere
        details["definition"] = ""
    return {name: value for name, value in details.items() if value != ""}
