"""What the gate admitted: staged in the dataset, and reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fib_tools.errors import FormatError, RequestError
from fib_tools.gate.gate import Admission, AdmissionStatus
from fib_tools.model.definition import Definition
from fib_tools.phases.context import Context
from fib_tools.phases.outcomes import DefineEntry

__all__ = ["add_tags", "admission_entry", "stage"]

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
        context.dataset.write_definition(definition)
    except FormatError as error:
        raise RequestError(
            f"the file in the place of {definition.name!r} holds no Definition: {error.what}",
            where=error.where,
            todo="correct it or move it away; nothing was overwritten",
        ) from error
