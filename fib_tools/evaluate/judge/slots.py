"""Where the outputs of calls lie in the memory that the judge shares with a runner: one slot for each call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fib_tools.model.definition import Definition
from fib_tools.op_types.input_request import torch_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["OutputPlace", "SlotLayout"]

_ALIGNMENT = 512
"""Bytes; what CUDA's own allocations are aligned to at least, so that a kernel may expect it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputPlace:
    """One output within a slot."""

    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotLayout:
    """The outputs of one call, one after another."""

    outputs: tuple[OutputPlace, ...]
    slot_bytes: int

    @classmethod
    def of(cls, definition: Definition, axes: Mapping[str, int]) -> SlotLayout:
        """Lay out a Definition's outputs for the lengths of a workload; a scalar is a tensor without axes."""
        lengths = {**axes, **definition.const_axes}
        places: list[OutputPlace] = []
        end = 0
        for name, spec in definition.outputs.items():
            shape = tuple(lengths[axis] for axis in spec.shape or ())
            place = OutputPlace(name=name, offset=end, shape=shape, dtype=torch_dtype(spec.dtype))
            places.append(place)
            end += max(_ALIGNMENT, -(-place.bytes // _ALIGNMENT) * _ALIGNMENT)
        return cls(outputs=tuple(places), slot_bytes=max(end, _ALIGNMENT))

    def view(self, arena: torch.Tensor, slot: int) -> dict[str, torch.Tensor]:
        """View one slot of an arena of bytes as the outputs of a call."""
        start = slot * self.slot_bytes
        views = {}
        for place in self.outputs:
            data = arena[start + place.offset : start + place.offset + place.bytes]
            views[place.name] = data.view(place.dtype).view(place.shape)
        return views

    def stack(self, arena: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
        """View the first `count` slots as one tensor `[count, *shape]` for each output."""
        rows = arena[: count * self.slot_bytes].view(count, self.slot_bytes)
        stacked = {}
        for place in self.outputs:
            data = rows[:, place.offset : place.offset + place.bytes].view(place.dtype)
            stacked[place.name] = (
                data.reshape(count, *place.shape) if not place.shape else data.unflatten(1, place.shape)
            )
        return stacked
