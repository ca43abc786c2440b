"""A run that ends in time: it is asked between its parts, or where it tells of its progress."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from fib_tools.errors import TimeUpError
from fib_tools.phases.context import Context

__all__ = ["TIME_IS_UP", "TimeBudget"]

TIME_IS_UP = (
    "the time given to phase 3 is over (--max-minutes); what was finished is kept: run the same command again to go on"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeBudget:
    """The moment after which nothing new is begun."""

    ends: float | None
    """On the monotonic clock; None: never."""

    @classmethod
    def of_minutes(cls, minutes: float | None) -> TimeBudget:
        """Begin now."""
        return cls(ends=None if minutes is None else time.monotonic() + 60 * minutes)

    @property
    def left(self) -> float | None:
        """Seconds, at least none; None without an end."""
        return None if self.ends is None else max(0.0, self.ends - time.monotonic())

    def check(self) -> None:
        """Go on only in time.

        Raises:
            TimeUpError: the time is over.
        """
        if self.left == 0:
            raise TimeUpError(TIME_IS_UP)

    def watch(self, context: Context) -> Context:
        """Give a context in which telling of progress ends an operation that is late."""

        def tell(step: str, done: int, total: int) -> None:
            context.progress(step, done, total)
            self.check()

        return replace(context, progress=tell)
