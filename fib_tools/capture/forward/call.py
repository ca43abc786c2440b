"""One call of a kernel, as Definitions and Workloads describe it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "Described", "Unmapped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What was computed, and how much of it."""

    kernel: str
    """The id of a kernel type (`op_types`)."""
    parameters: Mapping[str, Any]
    """Its sizes and constants; those that a call cannot show are left out."""
    axes: Mapping[str, int]
    """Lengths of the var axes."""
    given: Mapping[str, tuple[int, ...] | tuple[float, ...]] = field(default_factory=dict)
    """Inputs whose content decides what is computed, by name, such as `kv_indptr`."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Scalar inputs, by name."""
    rows: tuple[int, ...] = ()
    """What its first axis is made of: sequences, then tokens with padding, and heads beside them; or how many rows in all.

    Of a call that is told when the run is over: empty, unless rows of padding may be among them.
    """
    starts: Mapping[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    """Of attention, by such sequences and tokens: where sequences begin without padding, and the total."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unmapped:
    """What was computed, and why it is no call of a kernel type."""

    what: str
    reason: str
    kernel: str = ""
    """The id of the kernel type that it would be one of, if there is one."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of the tensors that it takes."""
    starts: Mapping[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    """Of attention, as a `Call` has it."""


Described = Call | Unmapped | Callable[[], Call | Unmapped] | None
"""What a call is, or how to find out when the run is over; None is not worth counting."""
