"""What a running model did and when, as plain data: spans that nest, the tensors they read and wrote, counters.

    Timeline(name="Llama-3.2-1B", spans=(
        Span(name="layers.0", kind="layer", start_ns=0, end_ns=90),
        Span(name="q_proj", kind="operator", parent=0, start_ns=10, end_ns=50, outputs=(q,), details={"op_type": "gemm"}),
    ))

What the host does stands on one track; a kernel of a device stands on the device's, and names the operator that
launched it as its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fib_tools.errors import FormatError
from fib_tools.model.base import Model, NonEmpty, NonNegative

__all__ = [
    "AXIS",
    "DEVICE",
    "HOST",
    "Clock",
    "Counter",
    "Kind",
    "Span",
    "TensorNote",
    "Timeline",
    "Value",
    "check_nesting",
    "close_until",
]

Kind = Literal["model", "layer", "module", "operator", "step", "kernel"]
Clock = Literal["monotonic", "boottime", "realtime"]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = str | bool | Integer | Finite

HOST = "host"
DEVICE = "device"
AXIS = "axis "
"""What the lengths of a Definition's var axes begin with among a span's details: `axis M`."""

_RESERVED = frozenset({"kind", "inputs", "outputs"})
_TODO = "let each span lie inside its parent, after the sibling before it, and list the spans in order of start"


class TensorNote(Model):
    """A tensor as a span met it."""

    name: NonEmpty
    shape: tuple[NonNegative, ...]
    dtype: NonEmpty
    strides: tuple[Integer, ...]
    """Elements from one to the next, per axis."""
    bytes: NonNegative
    """What its elements take: not what its storage takes."""
    key: Integer | None = None
    """Which storage it lies in; spans that note the same key hand data on. None where nobody knows."""


class Span(Model):
    """Something that ran from one moment to another."""

    name: NonEmpty
    kind: Kind
    start_ns: NonNegative
    end_ns: NonNegative
    parent: NonNegative | None = None
    """The index of the span that this one is a part of."""
    track: str = ""
    """Which device and stream did it; when empty, the device for a kernel and the host for everything else."""
    inputs: tuple[TensorNote, ...] = ()
    outputs: tuple[TensorNote, ...] = ()
    details: dict[NonEmpty, Value] = Field(default_factory=dict)
    """op_type, definition, bytes, flops, arithmetic_intensity and whatever else is known."""

    @property
    def track_name(self) -> str:
        """The track it stands on."""
        return self.track or (DEVICE if self.kind == "kernel" else HOST)

    @property
    def duration_ns(self) -> int:
        """How long it took."""
        return self.end_ns - self.start_ns

    @model_validator(mode="after")
    def _validate_names(self) -> Span:
        for notes in (self.inputs, self.outputs):
            names = [note.name for note in notes]
            if len(set(names)) < len(names):
                raise ValueError(f"two tensors of {self.name!r} have one name: {names}")
        if taken := _RESERVED & self.details.keys():
            raise ValueError(f"details of {self.name!r} may not be called {sorted(taken)}: its fields are")
        return self


class Counter(Model):
    """A quantity over time."""

    name: NonEmpty
    unit: str
    """`bytes`, `GB/s`; empty for a mere count."""
    points: tuple[tuple[NonNegative, Integer | Finite], ...]
    """Nanoseconds and value: the value holds until the next point."""


class Timeline(Model):
    """All that was watched of one run."""

    name: NonEmpty
    clock: Clock = "monotonic"
    """What the nanoseconds count from; `time.perf_counter_ns` is the monotonic clock on Linux."""
    spans: tuple[Span, ...]
    """In order of start, a parent before its children."""
    counters: tuple[Counter, ...] = ()
    details: dict[NonEmpty, Value] = Field(default_factory=dict)
    """Of the run as a whole: model, weights, versions, machine."""

    def list_paths(self) -> list[str]:
        """Name each span with its parents: `model/layers.0/self_attn/q_proj`."""
        paths: list[str] = []
        for span in self.spans:
            paths.append(span.name if span.parent is None else f"{paths[span.parent]}/{span.name}")
        return paths


def check_nesting(timeline: Timeline) -> None:
    """Refuse spans that a track cannot show: those of one track lie inside each other or apart.

    It follows that children never take longer than their parent.

    Raises:
        FormatError: naming the two spans that collide.
    """
    spans = timeline.spans
    open_spans: dict[str, list[int]] = {}
    for index, span in enumerate(spans):
        _check_order(timeline, index)
        stack = open_spans.setdefault(span.track_name, [])
        for ended in close_until(stack, spans, index):
            if spans[ended].end_ns > span.start_ns:
                raise _refuse(timeline, index, f"begins before {_describe(timeline, ended)} ends")
        if stack and span.end_ns > spans[stack[-1]].end_ns:
            raise _refuse(timeline, index, f"ends after its parent {_describe(timeline, stack[-1])}")
        if not stack and _has_parent_on_its_track(spans, index):
            raise _refuse(timeline, index, "begins after its parent has ended")
        stack.append(index)


def close_until(stack: list[int], spans: Sequence[Span], index: int) -> list[int]:
    """Take from a track's open spans those that are over when the span begins: all but its parent and what holds that."""
    parent = spans[index].parent
    ended: list[int] = []
    while stack and stack[-1] != parent:
        ended.append(stack.pop())
    return ended


def _check_order(timeline: Timeline, index: int) -> None:
    spans = timeline.spans
    span = spans[index]
    if span.end_ns < span.start_ns:
        raise _refuse(timeline, index, "ends before it begins")
    if span.parent is not None and span.parent >= index:
        raise _refuse(timeline, index, f"stands before its parent, span {span.parent}")
    if span.parent is not None and span.start_ns < spans[span.parent].start_ns:
        raise _refuse(timeline, index, f"begins before its parent {_describe(timeline, span.parent)}")
    if index and span.start_ns < spans[index - 1].start_ns:
        raise _refuse(timeline, index, f"stands after {_describe(timeline, index - 1)}, which begins later")


def _has_parent_on_its_track(spans: Sequence[Span], index: int) -> bool:
    parent = spans[index].parent
    return parent is not None and spans[parent].track_name == spans[index].track_name


def _describe(timeline: Timeline, index: int) -> str:
    span = timeline.spans[index]
    return f"{span.kind} {span.name!r} (span {index}, {span.start_ns} to {span.end_ns} ns)"


def _refuse(timeline: Timeline, index: int, what: str) -> FormatError:
    return FormatError(f"{_describe(timeline, index)} {what}", where=f"timeline {timeline.name!r}", todo=_TODO)
