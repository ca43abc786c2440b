"""What can be said of a Solution on a Workload, and how it is said while still in the middle of its calls."""

from __future__ import annotations

from dataclasses import dataclass

from fib_tools.model.trace import EvaluationStatus

__all__ = ["Refusal", "RefusedError"]


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
