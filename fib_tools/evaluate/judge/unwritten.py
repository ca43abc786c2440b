"""Outputs that a Solution never wrote: they still hold what the judge filled the memory with.

>>> found = find_unwritten(got, want, poison)  # tensors [calls, *shape]; None if all was written
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fib_tools.evaluate.judge.measures import unravel

if TYPE_CHECKING:
    import torch

__all__ = ["Unwritten", "find_unwritten"]

_POISON_BYTES = 4
"""So many bytes of poison in a row are no chance: one byte of it is a code that kernels write."""
_CHUNK = 1 << 27
"""Values that are looked at together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unwritten:
    """Values that still hold what the judge filled the memory with."""

    calls: tuple[int, ...]
    values: int
    """Of all calls."""
    call: int
    index: tuple[int, ...]
    """The first of them."""

    def __str__(self) -> str:
        where = f"call {self.call} {list(self.index)}"
        return f"{self.values} values of {len(self.calls)} calls were never written, the first at {where}"


def find_unwritten(got: torch.Tensor, want: torch.Tensor, poison: bytes) -> Unwritten | None:
    """Find values of `[calls, *shape]` whose bytes are still the poison, where the reference's are not.

    The poison is a pattern of 1, 2, 4 or 8 bytes that begins anew with each call's output. A value of one byte counts
    only in a run of four, since any byte is a code that a kernel may write.
    """
    import torch

    calls, values = len(got), math.prod(got.shape[1:])
    if not calls or not values:
        return None
    pattern = _spread(poison, got, values)
    bits = _integers(got.dtype.itemsize)
    least = min(values, max(1, _POISON_BYTES // got.dtype.itemsize))
    step = max(1, _CHUNK // values)
    parts = []
    for at in range(0, calls, step):
        have, must = (_bits(side[at : at + step], bits) for side in (got, want))
        held = (have == pattern) & (must != pattern)
        run = held[:, least - 1 :].clone()
        for shift in range(1, least):
            run &= held[:, least - 1 - shift : values - shift]
        parts.append(torch.stack([held.sum(dim=-1), run.any(dim=-1), run.to(torch.int8).argmax(dim=-1)], dim=-1))
    table = torch.cat(parts).tolist()
    bad = {call: line for call, line in enumerate(table) if line[1]}
    if not bad:
        return None
    first = next(iter(bad))
    index = unravel(bad[first][2], tuple(got.shape[1:]))
    return Unwritten(calls=tuple(bad), values=sum(line[0] for line in bad.values()), call=first, index=index)


def _integers(size: int) -> torch.dtype:
    import torch

    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]


def _bits(tensor: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    return tensor.view(kind).reshape(len(tensor), -1)


def _spread(poison: bytes, like: torch.Tensor, values: int) -> torch.Tensor:
    """Give the poisoned values of one call as integers of the same width."""
    import torch

    size = like.dtype.itemsize
    period = max(size, len(poison))
    if period % size or period % len(poison):
        raise ValueError(f"a pattern of {len(poison)} bytes does not fit values of {size}")
    unit = torch.tensor(list(poison * (period // len(poison))), dtype=torch.uint8, device=like.device)
    unit = unit.view(_integers(size))
    return unit.repeat(-(-values // len(unit)))[:values]
