"""The gate: every Definition that enters the dataset, whoever wrote it, comes through `admit`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from fib_tools.errors import FormatError, PathError
from fib_tools.gate.execute import Execution, execute_many
from fib_tools.gate.fixes.observed import adapt
from fib_tools.gate.identity import Signature, build_index, compare, signature
from fib_tools.gate.normalise import Normalised
from fib_tools.gate.strict import find_axis_faults
from fib_tools.host.sandbox import Sandbox
from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition
from fib_tools.model.naming import parse_name
from fib_tools.model.report import Finding, Severity
from fib_tools.model.tags import merge_tags
from fib_tools.op_types.axes import choose_axes

__all__ = ["Admission", "AdmissionStatus", "Candidate", "admit", "to_candidate"]

_ADAPTATIONS = 3
"""A trial run shows one kind of difference at a time: types, ranks, inputs that are written into."""


class AdmissionStatus(str, Enum):
    """What the gate decided."""

    ACCEPTED = "accepted"
    EXISTING = "existing"
    """The dataset has this kernel already, under this or another name."""
    CONFLICT = "conflict"
    """Accepted under another name: its own is taken by another kernel."""
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A Definition at the gate."""

    definition: Definition
    qualifier: str = ""
    """What sets it apart from another kernel of the same name, such as `eps1e-05`; see `Parameters.qualifier`."""
    tags: tuple[str, ...] = ()
    """Added to the Definition's own."""
    is_foreign: bool = False
    """Its reference is not ours: what a trial run shows may be repaired."""
    fallback: Definition | None = None
    """Our own Definition of the same kernel, for a foreign one whose reference does not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """What became of a candidate."""

    candidate: Candidate
    status: AdmissionStatus
    name: str
    """The name it came with."""
    definition: Definition | None = None
    """As staged; None unless accepted or in conflict."""
    existing: str | None = None
    """The Definition of the same kernel, or the one that has the name."""
    findings: tuple[Finding, ...] = ()
    execution: Execution | None = None


@dataclass(kw_only=True)
class _Desk:
    """What is decided so far."""

    by_name: dict[str, Definition]
    by_signature: dict[Signature, str]
    pending: dict[str, tuple[Candidate, Definition, AdmissionStatus]] = field(default_factory=dict)
    notes: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """What was repaired after a trial run, as check and message, by name."""
    followers: dict[str, list[Candidate]] = field(default_factory=dict)
    """Candidates that are the same kernel as one that still has to run, by its name."""


def to_candidate(normalised: Normalised) -> Candidate:
    """Bring a dump that was not refused to the gate."""
    if normalised.definition is None:
        raise ValueError("a refused dump is no candidate")
    found = None if normalised.is_canonical else normalised.recognised
    return Candidate(
        definition=normalised.definition,
        is_foreign=not normalised.is_canonical,
        fallback=found.build() if found else None,
    )


def admit(
    candidates: Iterable[Candidate],
    *,
    index: Mapping[str, Definition],
    stage: Callable[[Definition], object],
    execute: bool = True,
    sandbox: Sandbox | None = None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Iterator[Admission]:
    """Judge candidates against the dataset and each other; `stage` gets each accepted one as soon as it has run.

    Identity comes before execution, so that a kernel the dataset has costs nothing. Results are not in order.
    `report` is told how much of the dataset they are held against so far.
    """
    desk = _Desk(by_name=dict(index), by_signature=build_index(index.values(), report))
    for candidate in candidates:
        decided = _decide(candidate, desk)
        if decided is not None:
            yield decided
    if execute:
        yield from _run_pending(desk, stage, sandbox=sandbox)
    else:
        for name in list(desk.pending):
            yield from _settle(name, None, desk, stage)


def _decide(candidate: Candidate, desk: _Desk) -> Admission | None:
    """Decide what can be decided without running; None leaves the candidate pending."""
    definition = candidate.definition
    faults = _find_faults(candidate)
    if faults:
        return _refuse(candidate, faults)
    identity = signature(definition)
    existing = desk.by_signature.get(identity)
    if existing is not None:
        if existing in desk.pending:
            desk.followers.setdefault(existing, []).append(candidate)
            return None
        return _existing(candidate, desk.by_name[existing])
    status = AdmissionStatus.CONFLICT if definition.name in desk.by_name else AdmissionStatus.ACCEPTED
    name = _free_name(candidate, desk)
    tags = merge_tags(definition.tags, candidate.tags)
    staged = definition.model_copy(update={"name": name, "tags": tags})
    desk.by_name[name] = staged
    desk.by_signature[identity] = name
    desk.pending[name] = (candidate, staged, status)
    return None


def _find_faults(candidate: Candidate) -> list[tuple[str, str]]:
    """Check a Definition by itself: name, axes that a wrong call leads to, constraints that cannot hold."""
    definition = candidate.definition
    suspicions = find_axis_faults(to_document(definition)) if candidate.is_foreign else ()
    faults = [("gate.shape", fault) for fault in suspicions]
    try:
        parse_name(definition.name)
        parse_name(definition.op_type)
        choose_axes(definition)
    except PathError as error:
        faults.append(("gate.name", str(error)))
    except FormatError as error:
        faults.append(("gate.constraint", str(error)))
    return faults


def _free_name(candidate: Candidate, desk: _Desk) -> str:
    name = candidate.definition.name
    if name not in desk.by_name:
        return name
    if candidate.qualifier and f"{name}_{candidate.qualifier}" not in desk.by_name:
        return f"{name}_{candidate.qualifier}"
    version = 2
    while f"{name}_v{version}" in desk.by_name:
        version += 1
    return f"{name}_v{version}"


def _run_pending(desk: _Desk, stage: Callable[[Definition], object], *, sandbox: Sandbox | None) -> Iterator[Admission]:
    """Run what is pending; what a run shows of a foreign reference is repaired, and it runs again."""
    waiting = [definition for _, definition, _ in desk.pending.values()]
    for remaining in reversed(range(_ADAPTATIONS + 1)):
        again = []
        for name, execution in execute_many(waiting, sandbox=sandbox):
            adapted = _adapt(name, execution, desk) if remaining else None
            if adapted is None:
                yield from _settle(name, execution, desk, stage)
            else:
                again.append(adapted)
        if not again:
            return
        waiting = again


def _adapt(name: str, execution: Execution, desk: _Desk) -> Definition | None:
    candidate, definition, status = desk.pending[name]
    if execution.executed or not candidate.is_foreign:
        return None
    found = adapt(definition, execution.seen)
    notes = desk.notes.setdefault(name, [])
    if found is not None:
        adapted, changes = found
        notes += [("gate.adapted", change) for change in changes]
    elif candidate.fallback is not None and not any(check == "gate.replaced" for check, _ in notes):
        notes.append(("gate.replaced", f"ours stands in for a reference that does not run: {execution.reason}"))
        adapted = candidate.fallback.model_copy(update={"name": name, "tags": definition.tags})
    else:
        return None
    desk.pending[name] = (candidate, adapted, status)
    desk.by_name[name] = adapted
    return adapted


def _settle(
    name: str, execution: Execution | None, desk: _Desk, stage: Callable[[Definition], object]
) -> Iterator[Admission]:
    candidate, definition, status = desk.pending.pop(name)
    followers = desk.followers.pop(name, [])
    if execution is not None and not execution.executed:
        fault = [("gate.not_executed", execution.reason or "the reference did not run")]
        for item in (candidate, *followers):
            yield _refuse(item, fault, execution)
        return
    stage(definition)
    original = candidate.definition.name
    is_renamed = status is AdmissionStatus.CONFLICT
    findings = [_conflict(candidate, definition)] if is_renamed else []
    findings += [_finding(Severity.NOTE, check, definition, text) for check, text in desk.notes.pop(name, [])]
    yield Admission(
        candidate=candidate,
        status=status,
        name=original,
        definition=definition,
        existing=original if is_renamed else None,
        findings=tuple(findings),
        execution=execution,
    )
    for follower in followers:
        yield _existing(follower, definition)


def _finding(severity: Severity, check: str, definition: Definition, message: str) -> Finding:
    where = f"definitions/{definition.op_type}/{definition.name}.json"
    return Finding(severity=severity, check=check, where=where, message=message, definition=definition.name)


def _refuse(candidate: Candidate, faults: list[tuple[str, str]], execution: Execution | None = None) -> Admission:
    definition = candidate.definition
    findings = tuple(_finding(Severity.ERROR, check, definition, message) for check, message in faults)
    return Admission(
        candidate=candidate,
        status=AdmissionStatus.REFUSED,
        name=definition.name,
        findings=findings,
        execution=execution,
    )


def _existing(candidate: Candidate, other: Definition) -> Admission:
    definition = candidate.definition
    verdict = compare(definition, other)
    message = f"the same kernel as {other.name}" + ("" if verdict.same_interface else ", called differently: ")
    message += "" if verdict.same_interface else "; ".join(verdict.differences)
    finding = _finding(Severity.NOTE, "gate.existing", definition, message)
    return Admission(
        candidate=candidate,
        status=AdmissionStatus.EXISTING,
        name=definition.name,
        existing=other.name,
        findings=(finding,),
    )


def _conflict(candidate: Candidate, staged: Definition) -> Finding:
    message = f"the name {candidate.definition.name} belongs to another kernel; staged as {staged.name}"
    return _finding(Severity.WARNING, "gate.conflict", staged, message)
