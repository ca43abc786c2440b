"""What was counted, stretch by stretch: a pass through a model, or all that is computed between two.

How many rows are padding is a property of one pass. Passes of several threads at the same time are one stretch.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fib_tools.capture.forward.call import Described

__all__ = ["Ledger", "Seen", "Stretch"]


@dataclass(eq=False, slots=True)
class Seen:
    """One key of an operator."""

    what: Described
    is_growing: bool
    place: int
    """In the order in which they came."""
    count: int = 0
    """Since the stretch began."""


Stretch = tuple[tuple[Seen, int], ...]
"""What was counted in it, and how often."""


class Ledger:
    """All that was seen, and what of it each stretch had."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.open: list[Seen] = []
        """Of the stretch that has not ended: what was counted at all."""
        self._passes = 0
        self._lock = threading.Lock()
        self._ended: dict[frozenset[tuple[Seen, int]], Counter[Stretch]] = {}
        """By what does not grow: one generation has thousands of passes that differ in attention only."""

    def learn(self, what: Described, *, is_growing: bool) -> Seen:
        """Begin to count a kind of call."""
        self.seen.append(Seen(what, is_growing, len(self.seen)))
        return self.seen[-1]

    def add(self, seen: Seen, times: int) -> None:
        """Count calls; one is counted without this, where it happens."""
        before = seen.count
        seen.count = before + times
        if before == 0:
            self.open.append(seen)

    def begin_pass(self) -> None:
        """Begin a stretch, unless this is a pass inside another."""
        with self._lock:
            if self._passes == 0:
                self._end_stretch()
            self._passes += 1

    def end_pass(self) -> None:
        """End the stretch, unless another pass goes on."""
        with self._lock:
            self._passes -= 1
            if self._passes == 0:
                self._end_stretch()

    def _end_stretch(self) -> None:
        made = self.open[:]
        del self.open[: len(made)]
        others: list[tuple[Seen, int]] = []
        growing: list[tuple[Seen, int]] = []
        for seen in made:
            (growing if seen.is_growing else others).append((seen, seen.count))
            seen.count = 0
        if made:
            self._ended.setdefault(frozenset(others), Counter())[tuple(growing)] += 1

    def list_stretches(self) -> Iterator[tuple[Stretch, Counter[Stretch]]]:
        """List what stretches had that does not grow, each with what they had besides, and how many had that."""
        with self._lock:
            self._end_stretch()
        for others, growing in self._ended.items():
            yield tuple(sorted(others, key=lambda each: each[0].place)), growing
