"""What can be said of a Solution on a Workload, and how it is said while still in the middle of its calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fib_tools.model.trace import EvaluationStatus

__all__ = ["ReferenceFailedError", "Refusal", "RefusedError", "blame_reference"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """How an evaluation ended, if not well."""

    status: EvaluationStatus
    detail: str
    rule: str | None = None
    """The integrity rule that was broken."""


class RefusedError(Exception):
    """A Solution cannot go on, or may not."""

    def __init__(self, status: EvaluationStatus, detail: str, *, rule: str | None = None) -> None:
        self.refusal = Refusal(status=status, detail=detail, rule=rule)
        super().__init__(detail)

    def at(self, place: str, *, rule: str | None = None) -> RefusedError:
        """Say the same, where it was, and that it breaks another rule if one is given."""
        found = self.refusal
        return RefusedError(found.status, f"{place}: {found.detail}", rule=rule or found.rule)


class ReferenceFailedError(Exception):
    """The reference cannot go on: that says nothing of a Solution, whosever turn it is."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.detail)


@contextmanager
def blame_reference() -> Iterator[None]:
    """Take what is refused in the block as the reference's failure.

    Raises:
        ReferenceFailedError: something is.
    """
    try:
        yield
    except RefusedError as error:
        raise ReferenceFailedError(error.refusal) from error
