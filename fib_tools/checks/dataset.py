"""All families together: the check of a whole dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fib_tools.checks.definitions import DEFINITIONS
from fib_tools.checks.layout import LAYOUT
from fib_tools.checks.rules import Family, Rule
from fib_tools.checks.solutions import SOLUTIONS
from fib_tools.checks.traces import BASELINES, TRACES
from fib_tools.checks.view import DatasetView
from fib_tools.checks.workloads import WORKLOADS
from fib_tools.errors import RequestError
from fib_tools.model.report import Finding

__all__ = ["FAMILIES", "check_dataset", "list_rules"]

FAMILIES: tuple[Family, ...] = (LAYOUT, DEFINITIONS, WORKLOADS, SOLUTIONS, TRACES, BASELINES)
"""In this order: the checks of traces use what the checks of workloads have read."""


def list_rules() -> tuple[Rule, ...]:
    """Return every rule, in order of family."""
    return tuple(rule for family in FAMILIES for rule in family.rules)


def check_dataset(view: DatasetView, checks: Collection[str] | None = None) -> Iterator[Finding]:
    """Yield what the chosen rules find; `checks` holds names of families or ids of rules.

    Raises:
        RequestError: when one of them is neither.
    """
    known = {family.name for family in FAMILIES} | {rule.id for rule in list_rules()}
    for name in checks or ():
        if name not in known:
            raise RequestError(
                f"no check {name!r}", todo=f"use {', '.join(family.name for family in FAMILIES)} or a rule id"
            )
    for family in FAMILIES:
        if checks is None or family.name in checks or any(rule.id in checks for rule in family.rules):
            for finding in family.check(view):
                if checks is None or family.name in checks or finding.check in checks:
                    yield finding
