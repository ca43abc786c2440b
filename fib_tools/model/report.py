"""Findings: what a check, a gate or a reader has to say about one place."""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty

__all__ = ["Finding", "Report", "Severity"]


class Severity(str, Enum):
    """How much a finding weighs: an error fails a run, a warning does not, a note is only said."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(Model):
    """One thing that one check saw in one place."""

    severity: Severity
    check: NonEmpty
    """The rule, such as `definition.constraint_false`."""
    where: NonEmpty
    """The path relative to the dataset's root, with line or field where there is one."""
    message: NonEmpty
    todo: str | None = None
    """What to do about it."""
    definition: str | None = None
    """The definition it concerns, when there is one."""


class Report(Model):
    """Everything one run of checks found, and what it looked at."""

    subject: NonEmpty
    """What was checked: a dataset's root, or a folder of dumps."""
    counts: dict[str, int] = Field(default_factory=dict)
    """What was looked at: definitions, workloads, solutions, traces, blobs, executed."""
    findings: list[Finding] = Field(default_factory=list)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that fail the run."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def is_clean(self) -> bool:
        """Tell whether there is no error; warnings are allowed."""
        return not self.errors
