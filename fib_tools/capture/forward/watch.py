"""Counting calls while a model runs: what is the same in kind and size is described once, and then only counted.

A model makes thousands of calls a second, so that the way of a call that is known is short: a key, a dictionary, a count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

from fib_tools.capture.forward.call import Call, Unmapped

if TYPE_CHECKING:
    import torch

__all__ = ["Describe", "Tally", "Watch"]

Describe = Callable[[Any], Call | Unmapped]


@dataclass(slots=True)
class Tally:
    """One kind of call, and how often it was made."""

    call: Call | Unmapped
    count: int = 0


class _Own(threading.local):
    """What each thread has of its own."""

    is_inside = False
    sum: ref[torch.Tensor] | None = None


class Watch:
    """What was seen of one run; of code that torch compiles, nothing is."""

    def __init__(self) -> None:
        import torch

        self._tallies: dict[Hashable, Tally] = {}
        self._own = _Own()
        self._is_compiling = torch.compiler.is_compiling

    @property
    def is_inside(self) -> bool:
        """Tell whether a call is under way that stands for all that it makes."""
        return self._own.is_inside

    @property
    def is_blind(self) -> bool:
        """Tell whether a call is not to be looked at."""
        return self._is_compiling() or self._own.is_inside

    def call(
        self, key: Hashable, describe: Describe, function: Callable[..., Any], *inputs: Any, **options: Any
    ) -> Any:
        """Make a call and count it, and nothing of what it calls itself.

        `describe(result)` says what it is when its key comes for the first time.
        """
        self._own.is_inside = True
        try:
            result = function(*inputs, **options)
            tally = self._tallies.get(key)
            if tally is None:
                tally = self._tallies[key] = Tally(describe(result))
        finally:
            self._own.is_inside = False
        tally.count += 1
        return result

    def note_sum(self, total: torch.Tensor) -> None:
        """Remember the result of the last addition: a norm of it may be fused with it."""
        self._own.sum = ref(total)

    def is_sum(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor is the result of the last addition."""
        return self._own.sum is not None and self._own.sum() is tensor

    def call_inside(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function and count nothing of what it calls."""
        self._own.is_inside = True
        try:
            return function(*arguments, **options)
        finally:
            self._own.is_inside = False

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """Every kind of call, in the order in which they came first; the same ones under several keys once."""
        found: dict[str, Tally] = {}
        for tally in self._tallies.values():
            known = found.setdefault(repr(tally.call), Tally(tally.call))
            known.count += tally.count
        return tuple(found.values())
