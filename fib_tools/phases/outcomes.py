"""What the gate made of kernels and dumps, as the define phase reports it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import Field

from fib_tools.model.summary import Result, Summary, Table
from fib_tools.model.tags import find_tag_values
from fib_tools.phases.context import Context

__all__ = ["DefineEntry", "DefineResult", "find_shared"]


class DefineEntry(Result):
    """What became of one kernel or dump."""

    name: str
    """The name it is staged under, or was to be."""
    op_type: str = ""
    status: Literal["defined", "defined before", "existing", "conflict", "changed", "refused", "would define"]
    """`defined before`: by an earlier run; `changed`: so too, but the file says something else now."""
    reason: str = ""
    executed: bool | None = None
    """Whether the reference ran; for those defined before, in that earlier run."""
    seconds: float | None = None
    fi_name: str | None = None
    remarks: tuple[str, ...] = ()
    """Changes that the normaliser made, and contradictions that the gate saw."""


class DefineResult(Result):
    """What was defined, and what was not."""

    rows = "entries"

    subject: str
    dataset: str
    entries: tuple[DefineEntry, ...]
    shared: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Definitions that several models use: name -> models."""

    @property
    def has_errors(self) -> bool:
        """A kernel that the gate refused is an error, and so is a Definition that was changed."""
        return any(entry.status in {"refused", "changed"} for entry in self.entries)

    def summary(self) -> Summary:
        """List what is not plainly defined, then the totals."""
        wrong = [entry for entry in self.entries if entry.status in {"conflict", "changed", "refused"}]
        odd = [
            entry for entry in self.entries if entry not in wrong and (entry.status == "would define" or entry.remarks)
        ]
        rows = tuple((entry.name, entry.status, entry.reason or "; ".join(entry.remarks)) for entry in odd)
        tables = (Table(title="remarks", columns=("definition", "status", "reason"), rows=rows),) if rows else ()
        shared = (f"{len(self.shared)} Definitions are shared with other models",) if self.shared else ()
        said = tuple(f"{entry.status}: {entry.name}: {entry.reason}" for entry in wrong)
        return Summary(tables=tables, lines=(*said, *shared, f"{self.subject}: {self.count_text()}", self.dataset))

    def count_text(self) -> str:
        """Count the entries by status, and the executed ones."""
        counts: dict[str, int] = {}
        for entry in self.entries:
            counts[entry.status] = counts.get(entry.status, 0) + 1
        counts["executed"] = sum(bool(entry.executed) and entry.status != "defined before" for entry in self.entries)
        return ", ".join(f"{count} {status}" for status, count in counts.items())


def find_shared(context: Context, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Find which of these Definitions carry the tags of several models."""
    definitions, _ = context.dataset.load_definitions()
    models = {name: find_tag_values(definitions[name].tags, "model") for name in names if name in definitions}
    return {name: models[name] for name in sorted(models) if len(models[name]) > 1}
