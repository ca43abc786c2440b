"""One input to be made: what a rule may look at, and the drawing of random values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fib_tools.model.definition import Definition, DType, TensorSpec

if TYPE_CHECKING:
    import torch

__all__ = ["InputRequest", "fill_random", "torch_dtype"]

_BLOCK = 1 << 20
"""Random values are drawn once for so many elements and repeated: drawing 10^8 would take seconds."""


@dataclass(frozen=True, kw_only=True)
class InputRequest:
    """One input to make, with everything a rule may look at."""

    definition: Definition
    axes: Mapping[str, int]
    """The length of every axis, const and var."""
    name: str
    spec: TensorSpec
    made: Mapping[str, Any]
    """The inputs before this one in calling order."""
    generator: torch.Generator
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        """The input's concrete shape; empty for a scalar."""
        return tuple(self.axes[axis] for axis in self.spec.shape or ())

    @property
    def dtype(self) -> torch.dtype:
        """The input's torch dtype."""
        return torch_dtype(self.spec.dtype)

    def integers(self, low: int, high: int, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Draw integers of [low, high) in the input's dtype."""
        import torch

        wanted = self.shape if shape is None else shape
        drawn = torch.randint(low, max(high, low + 1), wanted, generator=self.generator)
        return drawn.to(dtype=self.dtype, device=self.device)


def torch_dtype(dtype: DType) -> torch.dtype:
    """Return the torch dtype of a schema dtype; float4_e2m1 is torch's packed pair type."""
    import torch

    name = "float4_e2m1fn_x2" if dtype is DType.FLOAT4_E2M1 else dtype.value
    found: torch.dtype = getattr(torch, name)
    return found


def fill_random(request: InputRequest, *, scale: float = 1.0, byte_budget: int = 256 << 20) -> torch.Tensor:
    """Draw normal values times `scale`, sharing storage along leading axes beyond `byte_budget`."""
    import torch

    shape = request.shape
    stored = list(shape)
    width = request.dtype.itemsize
    for index in range(len(stored) - 1):
        if math.prod(stored) * width <= byte_budget:
            break
        stored[index] = 1
    count = math.prod(stored)
    block = torch.randn(min(count, _BLOCK), generator=request.generator) * scale
    values = block.to(request.dtype)
    if count > _BLOCK:
        values = values.view(torch.uint8).view(-1, width).repeat(-(-count // _BLOCK), 1)[:count].reshape(-1)
        values = values.view(request.dtype)
    return values.reshape(stored).to(request.device).expand(shape)
