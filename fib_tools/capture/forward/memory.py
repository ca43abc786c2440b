"""Bytes of the tensors that are alive while a model runs, from their storages: no allocator is asked, and none has to be.

What counts is each storage that the run has shown once: weights, inputs, and what every operation of torch returned, on any
device, also in layers that are not recorded from inside. It counts until the last reference to it goes, be that a view.
What an operation takes for itself while it runs, and what an allocator keeps for later, is in neither counter.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from fib_tools.capture.timeline import Counter

if TYPE_CHECKING:
    import torch

__all__ = ["ACTIVATIONS", "MEMORY", "LiveMemory"]

MEMORY = "live memory"
"""Everything that counts."""
ACTIVATIONS = "live activations"
"""The same less the weights, beside which it would be a flat line."""


class LiveMemory:
    """The storages that were seen, and how much they take from moment to moment."""

    def __init__(self) -> None:
        self._weights = 0
        self._sizes: dict[int, int] = {}
        self._known: dict[int, ref[Any]] = {}
        self._total = 0
        self._points: list[tuple[int, int]] = []

    def start(self, weights: Iterable[torch.Tensor], inputs: Iterable[torch.Tensor]) -> None:
        """Begin with what is there: of the weights' storages what they use, since one may be a whole file of them."""
        used: dict[int, dict[int, int]] = {}
        held: dict[int, Any] = {}
        for tensor in weights:
            storage = tensor.untyped_storage()
            held[_identify(storage)] = storage
            extents = used.setdefault(_identify(storage), {})
            extents[tensor.data_ptr()] = max(extents.get(tensor.data_ptr(), 0), _count_bytes(tensor))
        for key, extents in used.items():
            self._keep(key, held[key], min(sum(extents.values()), int(held[key].nbytes())))
        self._weights = self._total
        self.add(inputs)
        self._note()

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count the tensors' storages from now on, if they are new."""
        before = self._total
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = _identify(storage)
            if key not in self._sizes:
                self._keep(key, storage, int(storage.nbytes()))
        if self._total != before:
            self._note()

    def stop(self) -> tuple[Counter, Counter]:
        """Look no longer, and give what was seen: all of it, and all but the weights."""
        self._known.clear()
        points = tuple(self._points)
        rest = tuple((moment, total - self._weights) for moment, total in points)
        return Counter(name=MEMORY, unit="bytes", points=points), Counter(name=ACTIVATIONS, unit="bytes", points=rest)

    def _keep(self, key: int, storage: Any, size: int) -> None:
        # torch keeps a storage's Python object as long as the storage itself, also while only tensors refer to it
        self._known[key] = ref(storage, partial(self._drop, key))
        self._sizes[key] = size
        self._total += size

    def _drop(self, key: int, _: ref[Any]) -> None:
        self._known.pop(key, None)
        self._total -= self._sizes.pop(key)
        self._note()

    def _note(self) -> None:
        self._points.append((time.perf_counter_ns(), self._total))


def _identify(storage: Any) -> int:
    """Tell storages apart by the address of their own description: that of their data is 0 for all that are empty."""
    return int(storage._cdata)  # noqa: SLF001  # torch has no public name for it


def _count_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
