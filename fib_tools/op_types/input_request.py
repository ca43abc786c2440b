"""One input to be made: what a rule may look at, and the drawing of random values.

A trial draws one block on the CPU and repeats it, which is fast and enough to see that a reference runs. An evaluation
draws every element anew, on the device (`fresh`), since a kernel could see that rows repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fib_tools.model.definition import Definition, DType, TensorSpec
from fib_tools.op_types.distribution import Distribution, add_outliers, find_moments
from fib_tools.op_types.draws import draw_bits, draw_integers, draw_normal, draw_uniform

if TYPE_CHECKING:
    import torch

__all__ = ["BYTE_BUDGET", "InputRequest", "torch_dtype"]

BYTE_BUDGET = 256 << 20
"""Bytes of one input beyond which leading axes share storage, where memory is scarce."""

_BLOCK = 1 << 20
"""A trial draws so many elements once and repeats them: drawing 10^8 would take seconds."""
_TRIAL_BUDGET = 32 << 20
"""The same as `BYTE_BUDGET`, for codes and scales in a trial."""


@dataclass(frozen=True, kw_only=True)
class InputRequest:
    """One input to make, with everything a rule may look at."""

    definition: Definition
    axes: Mapping[str, int]
    """The length of every axis, const and var."""
    name: str
    spec: TensorSpec
    made: Mapping[str, Any]
    """The inputs before this one in calling order; of an evaluation, those that are structure."""
    generator: torch.Generator
    device: str = "cpu"
    fresh: bool = False
    """Whether every element is drawn on the generator's device, rather than a block on the CPU that is repeated."""
    byte_budget: int | None = BYTE_BUDGET
    """None: nothing shares storage."""
    distribution: Distribution = Distribution.TYPICAL
    """Of plain normal values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The input's concrete shape; empty for a scalar."""
        return tuple(self.axes[axis] for axis in self.spec.shape or ())

    @property
    def dtype(self) -> torch.dtype:
        """The input's torch dtype."""
        return torch_dtype(self.spec.dtype)

    def normal(
        self, scale: float = 1.0, *, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Draw normal values times `scale`, in the input's shape and dtype if no others are given."""
        import torch

        wanted, kind = self._or_own(shape, dtype)
        if not self.fresh:
            return self._repeat(
                lambda count: torch.randn(count, generator=self.generator) * scale, wanted, kind, self.byte_budget
            )
        mean, deviation = find_moments(self.distribution, scale)
        stored = _share(wanted, kind.itemsize, self.byte_budget)
        drawn = draw_normal(stored, mean=mean, deviation=deviation, dtype=kind, generator=self.generator)
        if self.distribution is Distribution.OUTLIERS:
            add_outliers(drawn, self.generator)
        return drawn.expand(wanted)

    def uniform(
        self, low: float, high: float, *, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Draw values of [low, high), in the input's shape and dtype if no others are given."""
        import torch

        wanted, kind = self._or_own(shape, dtype)
        if not self.fresh:
            return self._repeat(
                lambda count: torch.rand(count, generator=self.generator) * (high - low) + low,
                wanted,
                kind,
                _TRIAL_BUDGET,
            )
        stored = _share(wanted, kind.itemsize, self.byte_budget)
        return draw_uniform(stored, low=low, high=high, dtype=kind, generator=self.generator).expand(wanted)

    def codes(self, low: int, high: int) -> torch.Tensor:
        """Draw integers of [low, high) that stand for numbers, so that large tensors of them may share storage."""
        import torch

        if not self.fresh:
            return self._repeat(
                lambda count: torch.randint(low, high, (count,), generator=self.generator),
                self.shape,
                self.dtype,
                _TRIAL_BUDGET,
            )
        stored, info = _share(self.shape, self.dtype.itemsize, self.byte_budget), torch.iinfo(self.dtype)
        if (low, high) == (info.min, info.max + 1):
            drawn = draw_bits(stored, dtype=self.dtype, generator=self.generator)
        else:
            drawn = draw_integers(stored, low=low, high=high, dtype=self.dtype, generator=self.generator)
        return drawn.expand(self.shape)

    def integers(self, low: int, high: int, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Draw integers of [low, high) in the input's dtype."""
        import torch

        wanted = self.shape if shape is None else shape
        above = max(high, low + 1)
        if self.fresh:
            return draw_integers(wanted, low=low, high=above, dtype=self.dtype, generator=self.generator)
        drawn = torch.randint(low, above, wanted, generator=self.generator)
        return drawn.to(dtype=self.dtype, device=self.device)

    def _or_own(self, shape: tuple[int, ...] | None, dtype: torch.dtype | None) -> tuple[tuple[int, ...], torch.dtype]:
        return self.shape if shape is None else shape, self.dtype if dtype is None else dtype

    def _repeat(
        self, draw: Callable[[int], torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype, budget: int | None
    ) -> torch.Tensor:
        """Fill a shape from a block of drawn values, sharing storage along leading axes where it is large."""
        import torch

        stored = _share(shape, dtype.itemsize, budget)
        count = math.prod(stored)
        values = draw(min(count, _BLOCK)).to(dtype)
        if count > _BLOCK:
            rows = values.view(torch.uint8).view(-1, dtype.itemsize)
            values = rows.repeat(-(-count // _BLOCK), 1)[:count].reshape(-1).view(dtype)
        return values.reshape(stored).to(self.device).expand(shape)


def _share(shape: tuple[int, ...], width: int, budget: int | None) -> tuple[int, ...]:
    """Shorten leading axes to one until the elements that are left fit the budget."""
    stored = list(shape)
    for index in range(len(stored) - 1):
        if budget is None or math.prod(stored) * width <= budget:
            break
        stored[index] = 1
    return tuple(stored)


def torch_dtype(dtype: DType) -> torch.dtype:
    """Return the torch dtype of a schema dtype; float4_e2m1 is torch's packed pair type."""
    import torch

    name = "float4_e2m1fn_x2" if dtype is DType.FLOAT4_E2M1 else dtype.value
    found: torch.dtype = getattr(torch, name)
    return found
