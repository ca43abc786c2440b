"""The Traces of a dataset as measurements, ours with their Evidence, another tool's as they are."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from fib_tools.dataset.layout import Kind, Location
from fib_tools.dataset.store import Dataset, StoredFile
from fib_tools.errors import FibError, FormatError, PathError, RequestError
from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.model.base import read_lenient
from fib_tools.model.canonical import load_json
from fib_tools.model.evidence import Evidence
from fib_tools.model.trace import Evaluation, Trace, read_timestamp

__all__ = ["OTHER_TOOL", "OWN_TOOL", "Reading", "read_measurements"]

OWN_TOOL = "fib-tools"
OTHER_TOOL = "another tool"

_KEY = re.compile(r"[0-9a-f]{64}")
_REJECTED = re.compile(r"REJECTED by ([a-z0-9-]{1,60}): ?")
_LONGEST_DETAIL = 600
_AGREEMENT = 0.001
"""Share by which a Trace's time may differ from its Evidence's: both are one number, written twice."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a dataset says, and what in it could not be read."""

    measurements: tuple[Measurement, ...]
    """Without speed-ups: one for each Solution, Workload, device and kind of evaluator, the newest."""
    axes: Mapping[str, Mapping[str, int]]
    """By workload uuid."""
    evidence: Mapping[str, Evidence]
    """By key."""
    problems: tuple[str, ...] = ()
    superseded: int = 0
    """Traces that a newer one of the same Solution, Workload and device replaces."""

    @property
    def devices(self) -> str:
        """Name those that something was measured on."""
        return ", ".join(sorted({repr(each.device) for each in self.measurements}))

    def take_device(self, device: str, *, where: str) -> Reading:
        """Take what was measured on one model of GPU, or CPU.

        Raises:
            RequestError: nothing was; with those that something was measured on.
        """
        kept = tuple(each for each in self.measurements if each.device == device)
        if not kept:
            raise RequestError(f"nothing was measured on {device!r}", where=where, todo=f"pass one of {self.devices}")
        return replace(self, measurements=kept)


@dataclass
class _Gathered:
    newest: dict[tuple[str, ...], tuple[datetime, Measurement]] = field(default_factory=dict)
    axes: dict[str, dict[str, int]] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    superseded: int = 0


def read_measurements(
    dataset: Dataset,
    *,
    definitions: Collection[str] | None = None,
    op_types: Collection[str] | None = None,
    with_evidence: bool = True,
) -> Reading:
    """Read every Trace of a dataset, old layout and new, with the Evidence beside it where there is some.

    Without evidence, which is most of the work, each Trace is taken at its word and only names the address of its own.

    Raises:
        StorageError: a folder cannot be read.
    """
    gathered = _Gathered()
    files = [file for file in _list_files(dataset, definitions) if file.location is not None]
    authors = _find_authors(files)
    for file in files:
        at = file.location
        if at is None or at.kind is not Kind.TRACES:
            continue
        if (definitions is None or at.definition in definitions) and (op_types is None or at.op_type in op_types):
            _read_file(dataset, file.relative, at, authors, gathered, with_evidence=with_evidence)
    return Reading(
        measurements=tuple(measurement for _, measurement in gathered.newest.values()),
        axes=gathered.axes,
        evidence=gathered.evidence,
        problems=tuple(gathered.problems),
        superseded=gathered.superseded,
    )


def _list_files(dataset: Dataset, definitions: Collection[str] | None) -> Iterator[StoredFile]:
    if definitions is None:
        return dataset.files("solutions", "traces")
    return (file for name in dict.fromkeys(definitions) for file in dataset.files_of(name))


def _find_authors(files: Iterable[StoredFile]) -> dict[tuple[str, str], str]:
    """Give the author by definition and Solution, for Traces whose path does not tell; nobody where two share a name."""
    found: dict[tuple[str, str], str] = {}
    for file in files:
        at = file.location
        if at is not None and at.kind is Kind.SOLUTION:
            key = (at.definition, at.file)
            found[key] = "" if key in found else at.author
    return found


def _read_file(
    dataset: Dataset,
    relative: str,
    at: Location,
    authors: Mapping[tuple[str, str], str],
    gathered: _Gathered,
    *,
    with_evidence: bool,
) -> None:
    for where, line in _lines(dataset, relative, gathered):
        try:
            trace = read_lenient(Trace, load_json(line, where=where), where=where)
        except FormatError as error:
            gathered.problems.append(f"{where}: {error.what}")
            continue
        evaluation = trace.evaluation
        if evaluation is None or trace.solution is None:
            continue
        evidence = _find_evidence(dataset, evaluation, where, gathered) if with_evidence else None
        author = at.author or authors.get((trace.definition, trace.solution), "")
        if not author and evidence is not None:
            author = evidence.subject.author
        measurement = _measure(trace, evaluation, evidence, author=author, op_type=at.op_type)
        if not with_evidence:
            measurement = measurement.model_copy(update={"evidence": _find_key(evaluation)})
        gathered.axes[trace.workload.uuid] = trace.workload.axes
        _keep_newest(measurement, gathered)


def _lines(dataset: Dataset, relative: str, gathered: _Gathered) -> Iterator[tuple[str, str]]:
    try:
        text = dataset.read(relative).decode()
    except (FibError, UnicodeDecodeError) as error:
        gathered.problems.append(f"{relative}: {error}")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{relative}:{number}", line


def _keep_newest(measurement: Measurement, gathered: _Gathered) -> None:
    key = (
        measurement.definition,
        measurement.workload,
        measurement.author,
        measurement.solution,
        measurement.device,
        measurement.measured_by,
    )
    moment = read_timestamp(measurement.timestamp)
    standing = gathered.newest.get(key)
    gathered.superseded += standing is not None
    if standing is None or standing[0] <= moment:
        gathered.newest[key] = (moment, measurement)


def _find_evidence(dataset: Dataset, evaluation: Evaluation, where: str, gathered: _Gathered) -> Evidence | None:
    """Read the Evidence that a Trace names; one that is not what its address says is a problem, and not used."""
    key = _find_key(evaluation)
    if key is None:
        return None
    try:
        evidence = dataset.find_evidence(key)
    except (FormatError, PathError) as error:
        gathered.problems.append(f"{where}: its evidence cannot be read: {error}")
        return None
    if evidence is None:
        return None
    problem = _find_disagreement(evidence, evaluation)
    if problem:
        gathered.problems.append(f"{where}: {problem}")
        return None
    gathered.evidence[key] = evidence
    return evidence


def _find_key(evaluation: Evaluation) -> str | None:
    """Find the address of the Evidence, beside the versions, or beside the errors."""
    for value in (evaluation.environment.libs.get("evidence"), _extra(evaluation).get("evidence")):
        if isinstance(value, str) and _KEY.fullmatch(value):
            return value
    return None


def _extra(evaluation: Evaluation) -> dict[str, Any]:
    return (evaluation.correctness.extra if evaluation.correctness else None) or {}


def _find_disagreement(evidence: Evidence, evaluation: Evaluation) -> str:
    if evidence.status is not evaluation.status:
        return f"it says {evaluation.status.value}, its evidence says {evidence.status.value}"
    said, seen = evaluation.performance, evidence.milliseconds
    if said is not None and (seen is None or abs(said.latency_ms - seen) > _AGREEMENT * seen):
        return f"it says {said.latency_ms!r} ms, its evidence says {seen!r}"
    return ""


def _measure(
    trace: Trace, evaluation: Evaluation, evidence: Evidence | None, *, author: str, op_type: str
) -> Measurement:
    performance = evaluation.performance
    extra = _extra(evaluation)
    rejected = _REJECTED.match(evaluation.log)
    low, high = _find_interval(extra, evidence)
    return Measurement(
        definition=trace.definition,
        op_type=op_type,
        author=author,
        solution=trace.solution or "",
        workload=trace.workload.uuid,
        device=evaluation.environment.hardware,
        measured_by=OWN_TOOL if _is_own(evaluation) else OTHER_TOOL,
        timer=evaluation.environment.libs.get("timer", ""),
        status=evaluation.status,
        rule=(evidence.rule if evidence else None) or _text(extra.get("rule")) or (rejected[1] if rejected else None),
        detail=_detail(evaluation, evidence),
        milliseconds=performance.latency_ms if performance else None,
        low=low if performance else None,
        high=high if performance else None,
        reference_speedup=(performance.speedup_factor or None) if performance else None,
        percent=_find_percent(extra, evidence) if performance else None,
        evidence=evidence.key if evidence else None,
        timestamp=evaluation.timestamp,
    )


def _is_own(evaluation: Evaluation) -> bool:
    return evaluation.environment.libs.get("evaluator", "").startswith(OWN_TOOL)


def _find_interval(extra: Mapping[str, Any], evidence: Evidence | None) -> tuple[float | None, float | None]:
    if evidence is not None and evidence.series:
        return evidence.series[0].low, evidence.series[0].high
    match extra.get("interval_ms"):
        case [(int() | float()) as low, (int() | float()) as high]:
            return float(low), float(high)
    return None, None


def _find_percent(extra: Mapping[str, Any], evidence: Evidence | None) -> float | None:
    if evidence is not None and evidence.roofline is not None:
        return evidence.roofline.percent
    said = extra.get("percent_of_limit")
    return float(said) if isinstance(said, (int, float)) and math.isfinite(said) and said >= 0 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _detail(evaluation: Evaluation, evidence: Evidence | None) -> str:
    """Say what went wrong: the end of a log tells most, the head of our own says it first."""
    if evaluation.performance is not None:
        return ""
    text = (evidence.detail if evidence else "") or _REJECTED.sub("", evaluation.log, count=1)
    text = text.strip()
    return text if len(text) <= _LONGEST_DETAIL else f"{text[:200]} ... {text[-(_LONGEST_DETAIL - 205) :]}"
