"""Rules by their ids, and the words every family's file is written in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fib_tools.checks.view import DatasetView
from fib_tools.model.report import Finding, Severity

__all__ = ["Family", "Rule", "error", "note", "warning"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One thing that can be wrong; `id` is family and fault, such as `workload.axis_missing`."""

    id: str
    severity: Severity
    summary: str
    todo: str | None = None

    def at(self, where: str, message: str, *, definition: str | None = None) -> Finding:
        """Say that this rule is broken in a place."""
        return Finding(
            severity=self.severity, check=self.id, where=where, message=message, todo=self.todo, definition=definition
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The rules of one kind of document, and the function that looks for breaches."""

    name: str
    rules: tuple[Rule, ...]
    check: Callable[[DatasetView], Iterator[Finding]]


def error(rule_id: str, summary: str, todo: str | None = None) -> Rule:
    """Declare a rule whose breach fails the run."""
    return Rule(id=rule_id, severity=Severity.ERROR, summary=summary, todo=todo)


def warning(rule_id: str, summary: str, todo: str | None = None) -> Rule:
    """Declare a rule whose breach is worth a look."""
    return Rule(id=rule_id, severity=Severity.WARNING, summary=summary, todo=todo)


def note(rule_id: str, summary: str, todo: str | None = None) -> Rule:
    """Declare something that is only said."""
    return Rule(id=rule_id, severity=Severity.NOTE, summary=summary, todo=todo)
