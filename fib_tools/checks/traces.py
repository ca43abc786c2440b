"""Traces: results of known Solutions on known Workloads; and baselines that exist, pass, and cover every Workload."""

from __future__ import annotations

from collections.abc import Iterator

from fib_tools.checks.rules import Family, error, warning
from fib_tools.checks.view import DatasetView
from fib_tools.dataset.layout import Kind, Location
from fib_tools.model.report import Finding
from fib_tools.model.solution import BASELINE
from fib_tools.model.trace import EvaluationStatus, Trace
from fib_tools.model.workload import workload_content

__all__ = ["BASELINES", "TRACES"]

_UNREADABLE = error("trace.unreadable", "a line that is no Trace", "mend or remove it")
_OTHER = error("trace.definition_differs", "a line of another Definition", "move it to that Definition's file")
_BARE = error("trace.no_evaluation", "a line without solution or evaluation", "move it to workloads/")
_SOLUTION = error("trace.solution_unknown", "a result of a Solution that is not there", "add the Solution")
_UUID = error("trace.uuid_unknown", "a result on a Workload that is not there", "add the Workload")
_CONTENT = error("trace.workload_differs", "the Workload differs from the one of the same uuid", "measure again")
_COVERAGE = warning("trace.coverage", "Workloads without a result of an author", "measure them")
_NO_BASELINE = warning(
    "baseline.missing", "a Definition without a baseline Solution", "add a Solution by the author baseline"
)
_NO_TRACE = warning("baseline.trace_missing", "a baseline without results", "measure it")
_FAILING = warning("baseline.not_passing", "a baseline that did not pass", "correct the baseline or the reference")
_FOREIGN = error("baseline.foreign_solution", "a baseline result of a Solution that is no baseline", "move it")


def _check(view: DatasetView) -> Iterator[Finding]:
    uuids = {location.definition: _known_uuids(view, path, location) for path, location in view.of_kind(Kind.WORKLOADS)}
    authors = {(solution.definition, solution.name): solution.author for _, _, solution in view.solutions}
    for path, location in view.of_kind(Kind.TRACES):
        known = uuids.get(location.definition, {})
        covered: set[str] = set()
        for line in view.lines(path):
            if line.trace is None:
                yield _UNREADABLE.at(line.where, line.problem, definition=location.definition)
                continue
            covered.add(line.trace.workload.uuid)
            yield from _check_line(line.where, location, line.trace, (known, authors))
        missing = known.keys() - covered
        if missing:
            message = f"{len(missing)} of {len(known)} Workloads have no result of {location.author or 'any author'}"
            yield _COVERAGE.at(path, message, definition=location.definition)


def _known_uuids(view: DatasetView, path: str, location: Location) -> dict[str, str]:
    standing = view.uuids.get(location.definition)
    if standing is not None:
        return standing
    workloads = [line.trace.workload for line in view.lines(path) if line.trace is not None]
    return {workload.uuid: workload_content(workload) for workload in workloads}


def _check_line(
    where: str, location: Location, trace: Trace, known: tuple[dict[str, str], dict[tuple[str, str], str]]
) -> Iterator[Finding]:
    uuids, authors = known
    name = location.definition
    if trace.definition != name:
        yield _OTHER.at(where, f"it is for {trace.definition!r}", definition=name)
    if trace.solution is None or trace.evaluation is None:
        yield _BARE.at(where, "it has no solution or no evaluation", definition=name)
    elif (name, trace.solution) not in authors:
        yield _SOLUTION.at(where, f"there is no Solution {trace.solution!r}", definition=name)
    elif location.author == BASELINE and authors[name, trace.solution] != BASELINE:
        yield _FOREIGN.at(where, f"{trace.solution} is by {authors[name, trace.solution]}", definition=name)
    workload = trace.workload
    if workload.uuid not in uuids:
        yield _UUID.at(where, f"there is no Workload {workload.uuid}", definition=name)
    elif uuids[workload.uuid] != workload_content(workload):
        yield _CONTENT.at(where, f"Workload {workload.uuid} says something else in workloads/", definition=name)


def _check_baselines(view: DatasetView) -> Iterator[Finding]:
    with_baseline = {solution.definition for _, _, solution in view.solutions if solution.author == BASELINE}
    traced: set[str] = set()
    for path, location in view.of_kind(Kind.TRACES):
        if location.author != BASELINE:
            continue
        traced.add(location.definition)
        failed = [line.where for line in view.lines(path) if line.trace is not None and not _passed(line.trace)]
        if failed:
            yield _FAILING.at(path, f"{len(failed)} results did not pass", definition=location.definition)
    for name, found in view.definitions.items():
        if not view.wants(name):
            continue
        if name not in with_baseline:
            yield _NO_BASELINE.at(found[0][0], "it has no baseline Solution", definition=name)
        elif name not in traced:
            yield _NO_TRACE.at(found[0][0], "its baseline has no results", definition=name)


def _passed(trace: Trace) -> bool:
    return trace.evaluation is not None and trace.evaluation.status is EvaluationStatus.PASSED


TRACES = Family(name="trace", rules=(_UNREADABLE, _OTHER, _BARE, _SOLUTION, _UUID, _CONTENT, _COVERAGE), check=_check)
BASELINES = Family(name="baseline", rules=(_NO_BASELINE, _NO_TRACE, _FAILING, _FOREIGN), check=_check_baselines)
