"""What the gate made of kernels and dumps, as the define phase reports it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import Field

from fib_tools.errors import FormatError, RequestError
from fib_tools.gate.gate import Admission, AdmissionStatus
from fib_tools.model.definition import Definition
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.model.tags import find_tag_values
from fib_tools.phases.context import Context

__all__ = ["DefineEntry", "DefineResult", "add_tags", "admission_entry", "find_shared", "stage"]


class DefineEntry(Result):
    """What became of one kernel or dump."""

    name: str
    """The name it is staged under, or was to be."""
    op_type: str = ""
    status: Literal["defined", "existing", "conflict", "refused", "would define"]
    reason: str = ""
    executed: bool | None = None
    seconds: float | None = None
    fi_name: str | None = None
    remarks: tuple[str, ...] = ()
    """Changes that the normaliser made, and contradictions that the gate saw."""


class DefineResult(Result):
    """What was defined, and what was not."""

    subject: str
    dataset: str
    entries: tuple[DefineEntry, ...]
    shared: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Definitions that several models use: name -> models."""

    @property
    def has_errors(self) -> bool:
        """A kernel that the gate refused is an error."""
        return any(entry.status == "refused" for entry in self.entries)

    def summary(self) -> Summary:
        """List what is not plainly defined, then the totals."""
        odd = [
            entry for entry in self.entries if entry.status in {"conflict", "refused", "would define"} or entry.remarks
        ]
        rows = tuple((entry.name, entry.status, entry.reason or "; ".join(entry.remarks)) for entry in odd)
        tables = (Table(title="remarks", columns=("definition", "status", "reason"), rows=rows),) if rows else ()
        shared = (f"{len(self.shared)} Definitions are shared with other models",) if self.shared else ()
        return Summary(tables=tables, lines=(*shared, f"{self.subject}: {self.count_text()}", self.dataset))

    def count_text(self) -> str:
        """Count the entries by status, and the executed ones."""
        counts: dict[str, int] = {}
        for entry in self.entries:
            counts[entry.status] = counts.get(entry.status, 0) + 1
        executed = sum(bool(entry.executed) for entry in self.entries)
        return ", ".join([*(f"{count} {status}" for status, count in counts.items()), f"{executed} executed"])


_STATUS: Mapping[AdmissionStatus, Literal["defined", "existing", "conflict", "refused"]] = {
    AdmissionStatus.ACCEPTED: "defined",
    AdmissionStatus.EXISTING: "existing",
    AdmissionStatus.CONFLICT: "conflict",
    AdmissionStatus.REFUSED: "refused",
}


def admission_entry(
    context: Context, admission: Admission, *, fi_name: str | None = None, remarks: tuple[str, ...] = ()
) -> DefineEntry:
    """Report an admission; a Definition that stood there already gains the candidate's tags when it says the same."""
    candidate = admission.candidate.definition
    if admission.status is AdmissionStatus.EXISTING and admission.existing:
        add_tags(context, admission.existing, candidate)
    name = admission.definition.name if admission.definition else admission.existing or admission.name
    execution = admission.execution
    return DefineEntry(
        name=name,
        op_type=candidate.op_type,
        status=_STATUS[admission.status],
        reason="; ".join(finding.message for finding in admission.findings),
        executed=execution.executed if execution else None,
        seconds=round(execution.seconds, 4) if execution else None,
        fi_name=fi_name,
        remarks=remarks,
    )


def add_tags(context: Context, existing: str, candidate: Definition) -> None:
    """Give a standing Definition the candidate's tags when it says the same; one of others is left as it is."""
    standing = context.dataset.find_definition(existing)
    if standing is None or not _is_name_of(standing.name, candidate.name):
        return
    own = {"name": standing.name, "tags": standing.tags}
    if standing == candidate.model_copy(update=own):
        stage(context, candidate.model_copy(update={"name": standing.name}))


def _is_name_of(name: str, wanted: str) -> bool:
    """Tell whether a Definition has the wanted name, or that name with what a conflict added."""
    return name == wanted or name.startswith(f"{wanted}_")


def stage(context: Context, definition: Definition) -> None:
    """Write a Definition that passed the gate into the dataset.

    Raises:
        RequestError: when something else stands in its place.
        StorageError: when the disk refuses.
    """
    try:
        context.dataset.stage(definition)
    except FormatError as error:
        raise RequestError(
            f"the file in the place of {definition.name!r} holds no Definition: {error.what}",
            where=error.where,
            todo="correct it or move it away; nothing was overwritten",
        ) from error


def find_shared(context: Context, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Find which of these Definitions carry the tags of several models."""
    definitions, _ = context.dataset.load_definitions()
    models = {name: find_tag_values(definitions[name].tags, "model") for name in names if name in definitions}
    return {name: models[name] for name in sorted(models) if len(models[name]) > 1}
