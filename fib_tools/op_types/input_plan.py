"""Inputs that are made again for each call: values drawn anew, structure copied to another place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["InputMaker", "InputPlan", "copy_elsewhere", "perturb_elsewhere"]

InputMaker = Callable[[int], Any]
"""Make one input for the seed of a call."""

_PLACES = 256
"""Addresses that copies go through, since an allocator gives freed memory out again."""
_STEP_BYTES = 256
"""From one to the next: no vector or matrix load asks for more alignment."""

_MIX = 0x45D9F3B
"""An odd multiplier that spreads low bits over a word."""
_SEED_MIX = 0x9E3779B1
"""2^32 divided by the golden ratio, so that neighbouring seeds differ in high bits."""


@dataclass(frozen=True, kw_only=True)
class InputPlan:
    """The inputs of one workload on one device, to be made for each call."""

    makers: Mapping[str, InputMaker]
    """By input, in calling order."""
    generator: torch.Generator
    """Of the device; every call sets its seed."""
    values: frozenset[str]
    """Inputs whose content is free, so that nothing may be computed from them before the call; others are structure."""

    def make(self, seed: int) -> dict[str, Any]:
        """Make every input, in calling order; the same seed gives the same bits on every device of one kind.

        Nothing waits for the device. Values lie in new storage; structure has the same content at another address.
        """
        self.generator.manual_seed(seed)
        return {name: make(seed) for name, make in self.makers.items()}


def copy_elsewhere(value: Any, device: str) -> InputMaker:
    """Give a scalar as it is, and a tensor at another address each time, on the device."""
    import torch

    if not isinstance(value, torch.Tensor):
        return lambda _: value
    master = value.to(device=device).clone(memory_format=torch.contiguous_format)
    find_place = _rotate(master)

    def make(seed: int) -> torch.Tensor:
        del seed
        return find_place().copy_(master)

    return make


def perturb_elsewhere(value: torch.Tensor, device: str) -> InputMaker:
    """Give a floating tensor with other contents each time: off by a few units in the last place.

    Signs, zeros, infinities and NaN stay; equal values stay equal, so ties and values that are spread over an axis do
    too. A tensor of powers of two alone (a mask, e8m0 scales) is copied as it is.
    """
    import torch

    words = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.dtype.itemsize]
    master = value.to(device=device).clone(memory_format=torch.contiguous_format)
    movable = _find_movable(master, words)
    if not movable.any():
        return copy_elsewhere(value, device)
    bits = master.view(words)
    spread = bits.to(torch.int64).mul_(_MIX).bitwise_xor_(bits.to(torch.int64) >> 7).to(torch.int32)
    keep, shift = movable.to(words), _SHIFTS[master.dtype.itemsize]
    find_place = _rotate(master)

    def make(seed: int) -> torch.Tensor:
        mixed = spread ^ _to_int32((seed ^ seed >> 32) * _SEED_MIX)
        mixed = mixed.mul_(_MIX).bitwise_xor_(mixed >> 15).mul_(_MIX).bitwise_right_shift_(shift)
        made = find_place()
        torch.add(bits, mixed.to(words).mul_(keep), out=made.view(words))
        return made

    return make


_SHIFTS: Mapping[int, int] = {1: 31, 2: 30, 4: 28, 8: 28}
"""By bytes of an element: how far a hash of 32 bits is moved, so that a step of 1, 2 or 8 units is left."""
_FEWEST = 16
"""Units from zero or infinity that a value needs to be moved at all."""


def _find_movable(master: torch.Tensor, words: torch.dtype) -> torch.Tensor:
    """Find the numbers that are neither zero, nor next to it or to infinity; none, if all are powers of two."""
    import torch

    size = (master.view(words) & torch.iinfo(words).max).to(torch.int64)
    largest = int(torch.tensor(torch.finfo(master.dtype).max, dtype=master.dtype).view(words))
    margin = 1 if master.dtype.itemsize == 1 else _FEWEST
    fraction = size & (round(1 / torch.finfo(master.dtype).eps) - 1)
    if not bool((fraction[size <= largest] != 0).any()):
        return torch.zeros_like(size, dtype=torch.bool)
    return (size > margin) & (size < largest - margin)


def _rotate(master: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Give empty tensors like the master, each at another offset of storage of its own."""
    import torch

    count, step = master.numel(), _STEP_BYTES // master.dtype.itemsize
    places = itertools.cycle(range(0, _PLACES * step, step))

    def find_place() -> torch.Tensor:
        start = next(places)
        room = torch.empty(count + _PLACES * step, dtype=master.dtype, device=master.device)
        return room[start : start + count].view(master.shape)

    return find_place


def _to_int32(number: int) -> int:
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)
