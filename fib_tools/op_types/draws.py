"""Random values drawn in full where they are used: on the device, in the element type, without a larger copy.

A generator of the same kind of device, at the same seed, gives the same bits in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["draw_bits", "draw_integers", "draw_normal", "draw_uniform"]

_CHUNK = 1 << 26
"""Elements of a type that cannot be drawn itself are drawn so many at a time, in twice or four times the bytes."""
_WORD = 8
"""Bytes that one draw of random bits gives."""


def draw_normal(
    shape: tuple[int, ...], *, mean: float, deviation: float, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Draw normal values; types of four bits get random codes, two to an element."""
    return _draw(shape, dtype, generator, lambda part: part.normal_(mean, deviation, generator=generator))


def draw_uniform(
    shape: tuple[int, ...], *, low: float, high: float, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Draw values of [low, high); rounding to a narrow type may reach `high`."""
    return _draw(shape, dtype, generator, lambda part: part.uniform_(low, high, generator=generator))


def draw_integers(
    shape: tuple[int, ...], *, low: int, high: int, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Draw integers of [low, high)."""
    import torch

    return torch.empty(shape, dtype=dtype, device=generator.device).random_(low, high, generator=generator)


def draw_bits(shape: tuple[int, ...], *, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Draw a tensor of any type whose bits are all random."""
    import torch

    made = torch.empty(shape, dtype=dtype, device=generator.device)
    stored = made.view(-1).view(torch.uint8)
    whole = stored.numel() // _WORD * _WORD
    words = stored[:whole].view(torch.int64)
    if whole:
        words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    if whole < stored.numel():
        stored[whole:].random_(0, 256, generator=generator)
    return made


def _draw(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    generator: torch.Generator,
    fill: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    import torch

    if dtype is torch.float4_e2m1fn_x2:
        return draw_bits(shape, dtype=dtype, generator=generator)
    made = torch.empty(shape, dtype=dtype, device=generator.device)
    if dtype.itemsize > 1:
        return fill(made)
    flat = made.view(-1)
    wide = torch.empty(min(flat.numel(), _CHUNK), dtype=torch.bfloat16, device=generator.device)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        part.copy_(fill(wide[: part.numel()]))
    return made
