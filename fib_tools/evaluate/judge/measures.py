"""Statistics of how far outputs are from the reference's: some thirty kernels for all calls together, one transfer.

Tensors are `[calls, *shape]`, on a GPU or a CPU; a row is the last axis of `shape`, and a `shape` of one axis is one row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fib_tools.op_types.tolerance import Tolerance

if TYPE_CHECKING:
    import torch

__all__ = [
    "Measure",
    "find_excess",
    "find_first_excess",
    "measure_calls",
    "read_values",
    "relative_to",
    "row_rms",
    "split_rows",
    "unravel",
]

_CHUNK_BYTES = 1 << 30
"""Memory for temporaries."""
_BYTES_EACH = 40
"""Of temporaries for each value: ten float32 tensors at most live at the same time."""
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of float4_e2m1 by code (OCP Microscaling Formats 1.0, table 1); the fourth bit is the sign."""
_LEAST_NORMAL = {"float16": 2**-14, "float8_e4m3fn": 2**-6, "float8_e5m2": 2**-14, "float4_e2m1fn_x2": 1.0}
"""The smallest number with all its bits, where results come near it."""
_SUMS, _LARGEST = slice(0, 4), slice(4, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One call's statistics of one output."""

    misses: int
    """Values out of bounds."""
    values: int
    absolute: float
    """The largest error; infinite where a number meets a NaN or an infinity."""
    relative: float
    """The largest error in proportion to its value, among values over the absolute bound."""
    total: float
    """The sum of errors."""
    product: float
    """The sum of error times value."""
    squares: float
    """The sum of squared values."""
    largest: float
    """The largest value, without its sign."""
    row_misses: int
    """Misses of the worst row."""

    @property
    def bias(self) -> float:
        """The factor, less one, that fits best between the two: a wrong scale that single values' bounds would hide."""
        return self.product / self.squares if self.squares else 0.0

    @property
    def effective(self) -> float:
        """How many values the bias is an average of, at least; a few large ones weigh more than many small ones."""
        return self.squares / self.largest**2 if self.largest else 0.0


def measure_calls(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance) -> list[Measure]:
    """Measure each call; both tensors are `[calls, *shape]` of one dtype."""
    import torch

    if got.shape != want.shape or got.dtype != want.dtype or not got.dim():
        raise ValueError(f"{got.dtype} {list(got.shape)} cannot be compared with {want.dtype} {list(want.shape)}")
    calls = len(got)
    values = math.prod(got.shape[1:]) * (2 if "float4" in str(got.dtype) else 1)
    if not calls or not values:
        return [_read([0.0] * 8, 0)] * calls
    g, w = split_rows(got), split_rows(want)
    chunks = list(_chunks(*g.shape))
    if len(chunks) == 1:
        table = _measure_chunk(g, w, tolerance)
    else:
        table = torch.zeros(calls, 8, dtype=torch.float64, device=got.device)
        for call, rows in chunks:
            part = _measure_chunk(g[call, rows], w[call, rows], tolerance)
            table[call, _SUMS] += part[:, _SUMS]
            table[call, _LARGEST] = torch.maximum(table[call, _LARGEST], part[:, _LARGEST])
    return [_read(line, values) for line in table.tolist()]


def _read(line: list[float], values: int) -> Measure:
    misses, total, product, squares, absolute, relative, largest, row_misses = line
    return Measure(
        misses=int(misses),
        values=values,
        absolute=_or_infinite(absolute),
        relative=_or_infinite(relative),
        total=_or_infinite(total),
        product=_or_infinite(product),
        squares=squares,
        largest=largest,
        row_misses=int(row_misses),
    )


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value


def split_rows(tensor: torch.Tensor) -> torch.Tensor:
    """View `[calls, *shape]` as `[calls, rows, width]`."""
    return tensor.reshape(len(tensor), -1, tensor.shape[-1]) if tensor.dim() > 2 else tensor.reshape(len(tensor), 1, -1)


def _chunks(calls: int, rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Cut calls, and long calls at rows, so that the temporaries fit; a single row is never cut."""
    most = max(1, _CHUNK_BYTES // (_BYTES_EACH * width))
    if rows > most:
        yield from (
            (slice(call, call + 1), slice(at, at + most)) for call in range(calls) for at in range(0, rows, most)
        )
        return
    step = max(1, most // rows)
    yield from ((slice(at, at + step), slice(None)) for at in range(0, calls, step))


def read_values(tensor: torch.Tensor) -> torch.Tensor:
    """Convert any floating type to float32 (float64 stays); pairs of float4 come apart, which doubles the last axis."""
    import torch

    if "float4" not in str(tensor.dtype):
        return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)
    codes = tensor.contiguous().view(torch.uint8)
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)], device=tensor.device)
    return table[torch.stack([codes & 15, codes >> 4], dim=-1).long()].flatten(-2)


def row_rms(values: torch.Tensor, special: torch.Tensor) -> torch.Tensor:
    """Give the root mean square of each row's finite values, `[..., 1]`; `values` are 0 where they are special."""
    import torch

    count = special.sum(dim=-1, keepdim=True).neg_().add_(values.shape[-1]).clamp_(min=1)
    norm: torch.Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return norm / count.sqrt()


def relative_to(size: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Give what a relative bound is a part of, for magnitudes in a format: below its normal numbers all are equally far apart."""
    least = _LEAST_NORMAL.get(str(dtype).removeprefix("torch."))
    return size if least is None else size.clamp(min=least)


def _measure_chunk(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance) -> torch.Tensor:
    """Give `[calls, 8]`: four sums (misses, errors, error * value, squares), then four maxima (see `_read`)."""
    is_number = got.is_floating_point()
    return _measure_numbers(got, want, tolerance) if is_number else _measure_codes(got, want)


def _measure_codes(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Integers are the same or not; float64 is wide enough to say by how much they differ."""
    import torch

    misses = (got != want).sum(dim=-1)
    size = want.double()
    error = (got.double() - size).abs_()
    none = torch.zeros(len(got), dtype=torch.float64, device=got.device)
    both = (1, 2)
    columns = (
        misses.sum(dim=-1),
        error.sum(dim=both),
        none,
        size.square().sum(dim=both),
        error.amax(dim=both),
        none,
        size.abs_().amax(dim=both),
        misses.amax(dim=-1),
    )
    return torch.stack([column.double() for column in columns], dim=-1)


def _measure_numbers(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance) -> torch.Tensor:
    import torch

    g, w = read_values(got), read_values(want)
    plain = torch.nan_to_num(w, nan=0.0, posinf=0.0, neginf=0.0)
    special = plain != w
    size = plain.abs()
    floor = row_rms(plain, special).mul_(tolerance.atol)
    off = torch.sub(g, plain).masked_fill_(special, 0.0)
    error = off.abs()
    hit = error <= torch.add(floor, relative_to(size, got.dtype), alpha=tolerance.rtol)
    hit.logical_and_(special <= _same(g, w))
    misses = hit.logical_not_().sum(dim=-1)
    relative = torch.where(size > floor, error / size, 0.0)
    both = (1, 2)
    columns = (
        misses.sum(dim=-1),
        error.sum(dim=both, dtype=torch.float64),
        off.mul_(plain).sum(dim=both, dtype=torch.float64),
        plain.square_().sum(dim=both, dtype=torch.float64),
        error.amax(dim=both),
        relative.amax(dim=both),
        size.amax(dim=both),
        misses.amax(dim=-1),
    )
    return torch.stack([column.double() for column in columns], dim=-1)


def _same(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Tell where both are the same, an infinity or NaN included."""
    return (first == second).logical_or_(first.isnan().logical_and_(second.isnan()))


def find_excess(
    got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance, count: int
) -> list[tuple[int, float, float]]:
    """Find the values of one call, `shape`, that are farthest over their bound: flat index, value, wanted value."""
    import torch

    g, w = split_rows(got[None]), split_rows(want[None])
    width = g.shape[-1]
    found: list[tuple[float, int, float, float]] = []
    for call, rows in _chunks(*g.shape):
        have, must = g[call, rows].flatten(0, 1), w[call, rows].flatten(0, 1)
        excess = _excess(have, must, tolerance).flatten()
        most = torch.topk(excess, min(count, len(excess)))
        per_row = len(excess) // len(have)
        for over, place in zip(most.values.tolist(), most.indices.tolist(), strict=True):
            row, column = divmod(place, per_row)
            values = (_number(side[row], column) for side in (have, must))
            found.append((over, ((rows.start or 0) + row) * width + column * width // per_row, *values))
    return [(place, have, must) for _, place, have, must in sorted(found, reverse=True)[:count]]


def find_first_excess(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance) -> tuple[int, float, float] | None:
    """Find the first value of one call, `shape`, that is over its bound: flat index, value, wanted value."""
    g, w = split_rows(got[None]), split_rows(want[None])
    width = g.shape[-1]
    for call, rows in _chunks(*g.shape):
        have, must = g[call, rows].flatten(0, 1), w[call, rows].flatten(0, 1)
        over = (_excess(have, must, tolerance) > 0).flatten()
        if not bool(over.any()):
            continue
        per_row = len(over) // len(have)
        row, column = divmod(int(over.int().argmax()), per_row)
        place = ((rows.start or 0) + row) * width + column * width // per_row
        return place, _number(have[row], column), _number(must[row], column)
    return None


def unravel(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Give the index of a value of a `shape` from its flat one."""
    index: list[int] = []
    for length in reversed(shape):
        place, at = divmod(place, length)
        index.append(at)
    return tuple(reversed(index))


def _excess(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance) -> torch.Tensor:
    import torch

    if not got.is_floating_point():
        return (got.double() - want.double()).abs()
    g, w = read_values(got), read_values(want)
    plain = torch.nan_to_num(w, nan=0.0, posinf=0.0, neginf=0.0)
    special = plain != w
    bound = row_rms(plain, special) * tolerance.atol + relative_to(plain.abs(), got.dtype) * tolerance.rtol
    over = torch.where(special, torch.where(_same(g, w), 0.0, math.inf), (g - plain).abs() - bound)
    return over.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)


def _number(row: torch.Tensor, column: int) -> float:
    return float((read_values(row) if row.is_floating_point() else row)[column].item())
