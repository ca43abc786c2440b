"""What is gathered about one Solution on one Workload while its calls are made."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fib_tools.evaluate.judge.contest import Entrant
from fib_tools.evaluate.judge.refusal import Refusal
from fib_tools.model.evidence import Clocks, OutputErrors, Series

__all__ = ["Trial"]


@dataclass(kw_only=True)
class Trial:
    """The account of one evaluation."""

    entrant: Entrant
    refusal: Refusal | None = None
    errors: dict[str, OutputErrors] = field(default_factory=dict)
    calls: int = 0
    distributions: list[str] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)
    """Milliseconds of timed calls on contents that were never seen before, with a cold L2."""
    again: list[float] = field(default_factory=list)
    """The same, on contents that had been seen: they must take as long."""
    eager: list[float] = field(default_factory=list)
    """The same as `fresh`, launched by Python, where `fresh` is launched by a graph."""
    busy: list[float] = field(default_factory=list)
    """Milliseconds of eager calls in which the device worked, without gaps between kernels."""
    host: list[float] = field(default_factory=list)
    """Microseconds until each eager call had returned."""
    is_captured: bool | None = None
    """A CUDA graph can hold the call; None: not tried."""
    flushes: int = 1
    """Of the L2 in a replay of the graph, as the runner says."""
    others: list[Series] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    first_call_seconds: float = 0.0
    clocks: Clocks = field(default_factory=Clocks)
    spent: float = 0.0
    _begun: float = 0.0

    @property
    def cold(self) -> list[float]:
        """All samples that the figure is made of."""
        return self.fresh + self.again

    @property
    def is_over(self) -> bool:
        """Tell whether nothing more is to be learnt."""
        return self.refusal is not None

    def enter(self) -> None:
        """Begin a turn."""
        self._begun = time.perf_counter()

    def leave(self) -> None:
        """End a turn."""
        self.spent += time.perf_counter() - self._begun

    def forget_times(self) -> None:
        """Throw away what was timed; what was compared stays."""
        self.fresh, self.again, self.eager, self.busy, self.host = [], [], [], [], []

    def take_errors(self, errors: dict[str, OutputErrors]) -> None:
        """Add what a comparison measured to what those before it did."""
        for name, new in errors.items():
            old = self.errors.get(name)
            self.errors[name] = new if old is None else _join(old, new)


def _join(old: OutputErrors, new: OutputErrors) -> OutputErrors:
    values = old.values + new.values
    share = new.values / values if values else 0.0
    return new.model_copy(
        update={
            "max_absolute": max(old.max_absolute, new.max_absolute),
            "max_relative": max(old.max_relative, new.max_relative),
            "mean_absolute": old.mean_absolute * (1 - share) + new.mean_absolute * share,
            "rms": (old.rms**2 * (1 - share) + new.rms**2 * share) ** 0.5,
            "misses": old.misses + new.misses,
            "values": values,
        }
    )
