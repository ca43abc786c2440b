"""From Evidence to the Traces of a dataset, as flashinfer-bench reads them.

A file of traces keeps one line for each Workload, Solution and device: the newest. Every other line stays as it is, to the
byte; all stand in the order of the Workloads, then of the Solutions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from fib_tools.dataset.layout import Kind, Location
from fib_tools.dataset.store import Dataset, Written
from fib_tools.errors import FormatError
from fib_tools.model.base import read_lenient
from fib_tools.model.canonical import format_line, load_json
from fib_tools.model.evidence import Evidence
from fib_tools.model.trace import (
    Correctness,
    Environment,
    Evaluation,
    EvaluationStatus,
    Performance,
    Trace,
    read_timestamp,
)
from fib_tools.model.workload import Workload

__all__ = ["FindWorkload", "Merged", "make_trace", "merge_lines", "write_results"]

FindWorkload = Callable[[str, str], Workload]
"""Gives a Workload by its Definition's name and its uuid."""

_WRITERS = 8
"""Files of evidence that are written at once: each waits for the disk twice."""
_REJECTED = "REJECTED by {rule}: {detail}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """What a merge wrote."""

    files: tuple[str, ...]
    """Of traces, relative to the dataset's root, that are new or changed."""
    results: int


def make_trace(evidence: Evidence, workload: Workload) -> Trace:
    """Sum an evaluation up.

    Raises:
        FormatError: it lacks what its status demands, such as a figure where it passed.
    """
    where = f"the evidence {evidence.key}"
    try:
        evaluation = Evaluation(
            status=evidence.status,
            environment=Environment(hardware=evidence.gpu.name, libs=_list_libs(evidence)),
            timestamp=evidence.timestamp,
            log=_write_log(evidence),
            correctness=_sum_up_errors(evidence),
            performance=_sum_up_times(evidence),
        )
    except ValidationError as error:
        raise FormatError(f"it makes no Trace: {error.errors()[0]['msg']}", where=where) from error
    subject = evidence.subject
    return Trace(definition=subject.definition, workload=workload, solution=subject.solution, evaluation=evaluation)


def _list_libs(evidence: Evidence) -> dict[str, str]:
    gpu = evidence.gpu
    ours = {
        "timer": evidence.series[0].timer.value if evidence.series else "",
        "gpu_uuid": gpu.uuid,
        "driver": gpu.driver,
        "evaluator": f"fib-tools {evidence.subject.evaluator}",
        "evidence": evidence.key,
    }
    return {**evidence.libs, **{name: value for name, value in ours.items() if value}}


def _write_log(evidence: Evidence) -> str:
    if evidence.rule is None or evidence.detail.startswith(_REJECTED.partition("{")[0]):
        return evidence.detail
    if evidence.status is EvaluationStatus.RUNTIME_ERROR:
        return _REJECTED.format(rule=evidence.rule, detail=evidence.detail)
    return f"{evidence.rule}: {evidence.detail}"


def _sum_up_errors(evidence: Evidence) -> Correctness | None:
    if evidence.status not in {EvaluationStatus.PASSED, EvaluationStatus.INCORRECT_NUMERICAL}:
        return None
    errors = evidence.errors.values()
    extra: dict[str, Any] = {
        "evidence": evidence.key,
        "seed": evidence.seed,
        "calls": evidence.calls,
        "distributions": list(evidence.distributions),
        "rule": evidence.rule,
    }
    if evidence.series:
        extra["interval_ms"] = [evidence.series[0].low, evidence.series[0].high]
    if evidence.roofline is not None:
        extra["percent_of_limit"] = evidence.roofline.percent
    return Correctness(
        max_relative_error=_find_worst(each.max_relative for each in errors),
        max_absolute_error=_find_worst(each.max_absolute for each in errors),
        extra={name: value for name, value in extra.items() if value not in (None, [])},
    )


def _find_worst(values: Iterable[float]) -> float:
    """Find the largest; not a number is worse than any."""
    return max(values, key=lambda value: (value != value, value), default=0.0)  # noqa: PLR0124


def _sum_up_times(evidence: Evidence) -> Performance | None:
    if evidence.status is not EvaluationStatus.PASSED or evidence.milliseconds is None:
        return None
    latency, reference = evidence.milliseconds, evidence.reference_ms or 0.0
    return Performance(
        latency_ms=latency, reference_latency_ms=reference, speedup_factor=reference / latency if latency else 0.0
    )


def write_results(dataset: Dataset, results: Iterable[Evidence], find_workload: FindWorkload) -> Merged:
    """Write evidence, then the Traces that point to it; what is already so is not touched.

    The caller holds the workspace's lock: two merges at once could lose one's lines.

    Raises:
        FormatError: evidence makes no Trace.
        StorageError: the disk refuses.
    """
    groups: dict[str, tuple[Location, list[Trace]]] = {}
    count = 0
    for evidence in _write_evidence(dataset, results):
        subject = evidence.subject
        trace = make_trace(evidence, find_workload(subject.definition, subject.workload))
        at = Location(kind=Kind.TRACES, author=subject.author, op_type=evidence.op_type, definition=subject.definition)
        groups.setdefault(str(at), (at, []))[1].append(trace)
        count += 1
    changed = [path for path, (at, traces) in sorted(groups.items()) if _merge_file(dataset, at, traces)]
    return Merged(files=tuple(changed), results=count)


def _write_evidence(dataset: Dataset, results: Iterable[Evidence]) -> Iterator[Evidence]:
    """Write evidence, several files at once, and hand it on."""
    with ThreadPoolExecutor(_WRITERS) as pool:
        begun = deque[Future[Written]]()
        for evidence in results:
            begun.append(pool.submit(dataset.write_evidence, evidence))
            if len(begun) > 2 * _WRITERS:
                begun.popleft().result()
            yield evidence
        for each in begun:
            each.result()


def _merge_file(dataset: Dataset, at: Location, traces: Sequence[Trace]) -> bool:
    workloads = dataset.load_workloads(at.op_type, at.definition)
    lines = merge_lines(dataset.read_lines(str(at)), traces, order=[workload.uuid for workload in workloads])
    return dataset.write_traces(at, lines) is not Written.UNCHANGED


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    text: str
    trace: Trace | None
    """None: it is none that we can read, and it stays."""

    @property
    def identity(self) -> tuple[str, str, str] | None:
        if self.trace is None or self.trace.solution is None or self.trace.evaluation is None:
            return None
        return self.trace.workload.uuid, self.trace.solution, self.trace.evaluation.environment.hardware

    @property
    def moment(self) -> datetime:
        return read_timestamp(self.trace.evaluation.timestamp if self.trace and self.trace.evaluation else "")


def merge_lines(standing: Sequence[str], traces: Iterable[Trace], *, order: Sequence[str]) -> list[str]:
    """Merge new Traces into the lines of a file; `order` names the Workloads by uuid."""
    lines = [_Line(text=text, trace=_read_trace(text)) for text in standing]
    for trace in traces:
        new = _Line(text=format_line(trace), trace=trace)
        rivals = [line for line in lines if line.identity == new.identity]
        if all(rival.moment <= new.moment for rival in rivals):
            lines = [line for line in lines if line.identity != new.identity] + [new]
    places = {uuid: place for place, uuid in enumerate(order)}
    ordered = sorted(lines, key=lambda line: _rank(line.identity, places))
    return [line.text for line in ordered]


def _rank(identity: tuple[str, str, str] | None, places: dict[str, int]) -> tuple[int, str, str, str]:
    """Put Workloads in their order, then those that are unknown by uuid, then lines that say nothing."""
    if identity is None:
        return len(places) + 1, "", "", ""
    uuid, solution, hardware = identity
    return places.get(uuid, len(places)), "" if uuid in places else uuid, solution, hardware


def _read_trace(text: str) -> Trace | None:
    try:
        return read_lenient(Trace, load_json(text, where="a line"), where="a line")
    except FormatError:
        return None
