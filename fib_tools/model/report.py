"""What a check, a gate or a reader has to say about one place: a finding, or a problem with what to change."""

from __future__ import annotations

from enum import Enum

from fib_tools.model.base import Model, NonEmpty

__all__ = ["Finding", "Problem", "Severity"]


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


class Problem(Model):
    """One thing to change in a document before it can be admitted."""

    field: str
    """Where: a dotted path into the Definition, such as `inputs.x.shape`."""
    found: str
    expected: str
    todo: str
    """How to change it."""
