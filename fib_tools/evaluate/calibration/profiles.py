"""What bounds an error would need: the numbers from which tolerances are chosen, and by which faults are judged.

A profile says, for a few rtol of one format and a few shares of hits, which atol (in units of the row's root mean
square) would just let the error pass. It is small, so that a confined child measures and its parent decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from fib_tools.evaluate.judge.comparison import limit_bias, row_limit
from fib_tools.evaluate.judge.measures import read_values, relative_to, row_rms, split_rows
from fib_tools.model.base import Model
from fib_tools.model.definition import DType
from fib_tools.op_types.tolerance import Tolerance, rounded

if TYPE_CHECKING:
    import torch

__all__ = [
    "HIT_RATIOS",
    "LEAST_ATOL",
    "UNBOUNDED",
    "ErrorProfile",
    "list_rtols",
    "measure_profile",
    "measure_same",
    "unit_of",
]

HIT_RATIOS = (1.0, 0.999, 0.995, 0.99)
LEAST_ATOL = 2.0**-20
"""Sixteen roundings of the float32 that all kernels sum in."""
UNBOUNDED = 1e30
"""Stands for an infinite atol, which JSON has no number for."""
_MARGIN = 4.0
_COARSEST = 2**-3
_MOST_VALUES = 1 << 16
"""Of a large output every n-th row tells how many values miss; all of it, what the largest error is."""
_SINGLE = 2.0**-24


class ErrorProfile(Model):
    """How far one output is from another of the same shape."""

    needed: list[list[float]] = Field(default_factory=list)
    """By share of hits (`HIT_RATIOS`), then by rtol (`list_rtols`): the atol that lets it pass."""
    used: list[list[float]] = Field(default_factory=list)
    """The same with only a part of rtol and of the misses used up: what a trusted kernel may need of them."""
    bias: float = 0.0
    effective: float = Field(default=0.0, ge=0.0)
    """Values that the bias is an average of."""
    absolute: float = 0.0
    """The largest error."""
    values: int = Field(default=0, ge=0)

    @property
    def is_one_step(self) -> bool:
        """Tell whether no value is farther off than its neighbouring number, where float32 has rounded sixteen times."""
        return self.needed[0][1] <= LEAST_ATOL if self.needed else not self.absolute

    def strength(self, dtype: DType, tolerance: Tolerance) -> float:
        """Say how the error stands to a tolerance of the grid: above 1 it is refused.

        What must be the same has no grid: any difference is beyond all bounds.
        """
        if not self.needed:
            return UNBOUNDED if self.absolute else 0.0
        atol = self.needed[HIT_RATIOS.index(tolerance.hit_ratio)][list_rtols(dtype).index(tolerance.rtol)]
        by_values = atol / tolerance.atol if tolerance.atol else UNBOUNDED if atol else 0.0
        return max(by_values, abs(self.bias) / limit_bias(tolerance, self.effective))


def unit_of(dtype: DType) -> float:
    """Give half the distance from 1 to the next number: `rounded` allows two."""
    return _SINGLE if dtype is DType.FLOAT32 else rounded(dtype).rtol / 2


def list_rtols(dtype: DType) -> tuple[float, ...]:
    """List the relative bounds to choose from: less than any rounding, two roundings, then more by powers of two.

    Those of float32, whose scale is long, by powers of four.
    """
    unit, factor = unit_of(dtype), 4 if dtype is DType.FLOAT32 else 2
    grid = [unit / 4, *(2 * unit * factor**step for step in range(12))]
    return tuple(rtol for rtol in grid if rtol <= max(_COARSEST, 2 * unit))


def measure_profile(got: torch.Tensor, want: torch.Tensor, dtype: DType) -> ErrorProfile:
    """Measure an error between floating tensors of one shape; NaN against a number needs an unbounded atol."""
    import torch

    g, w = (split_rows(read_values(side)[None])[0].double() for side in (got, want))
    plain = torch.nan_to_num(w, nan=0.0, posinf=0.0, neginf=0.0)
    special = plain != w
    same = (g == w) | (g.isnan() & w.isnan())
    error = torch.where(special, torch.where(same, 0.0, math.inf), (g - plain).abs()).nan_to_num(nan=math.inf)
    size, rms = plain.abs(), row_rms(plain, special)
    finite = torch.where(error.isfinite() & ~special, g - plain, 0.0)
    squares = float(plain.square().sum())
    largest = float(size.max()) if size.numel() else 0.0
    errors = _Errors(error=error, size=relative_to(size, getattr(torch, dtype.value)), rms=rms)
    rtols, unit = list_rtols(dtype), unit_of(dtype)
    return ErrorProfile(
        needed=[[errors.find_atol(rtol, ratio, 1.0) for rtol in rtols] for ratio in HIT_RATIOS],
        used=[[errors.find_atol(_part(rtol, unit), ratio, _MARGIN) for rtol in rtols] for ratio in HIT_RATIOS],
        bias=float((finite * plain).sum()) / squares if squares else 0.0,
        effective=squares / largest**2 if largest else 0.0,
        absolute=min(float(error.max()) if error.numel() else 0.0, UNBOUNDED),
        values=error.numel(),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Errors:
    """Errors and sizes, `[rows, width]`, and the root mean square of each row."""

    error: torch.Tensor
    size: torch.Tensor
    rms: torch.Tensor

    def find_atol(self, rtol: float, ratio: float, reserve: float) -> float:
        """Find the least atol at which few enough values of all, and of each row, miss; `reserve` asks for fewer."""
        import torch

        step = 1 if ratio == 1.0 else -(-self.error.numel() // _MOST_VALUES) or 1
        over = (self.error[::step] - rtol * self.size[::step]).clamp_(min=0.0)
        need = torch.where(over > 0, over / self.rms[::step], 0.0).clamp_(max=UNBOUNDED)
        if not need.numel():
            return 0.0
        if ratio == 1.0:
            return float(need.max())
        overall = torch.topk(need.flatten(), int((1 - ratio) * need.numel() / reserve) + 1).values[-1]
        width = need.shape[-1]
        in_row = min(int(row_limit(width, ratio) / reserve), width - 1)
        return float(torch.maximum(overall, torch.topk(need, in_row + 1, dim=-1).values[:, -1].max()))


def measure_same(got: torch.Tensor, want: torch.Tensor) -> ErrorProfile:
    """Measure outputs that must be the same, or that only other tests can judge: whether there is any difference."""
    import torch

    bits = [side.reshape(-1).contiguous().view(torch.uint8) for side in (got, want)]
    is_same = got.dtype == want.dtype and torch.equal(*bits)
    return ErrorProfile(absolute=0.0 if is_same else UNBOUNDED, values=want.numel())


def _part(rtol: float, unit: float) -> float:
    """Give the part of rtol that trusted errors may use: the last rounding of both sides, and a fourth of the rest."""
    return rtol if rtol <= 2 * unit else 2 * unit + (rtol - 2 * unit) / _MARGIN
