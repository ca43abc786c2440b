"""The best Solution of a Definition on one GPU model: fastest by its own Traces, and at least as fast as the baseline.

Only what `fib bench` measured counts, and only a Solution that passed on every Workload. A Trace names its Solution; where
its Evidence lies beside it, the hash there must be that of the Solution, so that an edited one counts no longer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fib_tools.evaluate.engines.items import hash_solution
from fib_tools.evaluate.report.report_reading import OWN_TOOL
from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.model.evidence import Evidence
from fib_tools.model.solution import BASELINE, Solution
from fib_tools.model.weights import find_weights, geometric_mean

__all__ = ["Choice", "Subject", "choose_best"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What there is to choose from for one Definition."""

    definition: str
    solutions: Sequence[Solution]
    workloads: Mapping[str, int | None]
    """How often each occurs, by its uuid; None where it does not say."""
    device: str
    """The GPU's model, such as NVIDIA H200."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The best Solution, or why there is none."""

    solution: Solution | None = None
    milliseconds: float | None = None
    """The geometric mean over the Workloads, weighted by how often they occur where all say it; of the best also where it is refused."""
    ratio: float | None = None
    """How many times as fast as the fastest baseline it is, the same mean; None without one."""
    reason: str = ""


_Times = Mapping[str, Measurement]
"""By workload."""


def choose_best(
    subject: Subject, measurements: Iterable[Measurement], evidence: Mapping[str, Evidence], *, least_ratio: float
) -> Choice:
    """Choose the fastest Solution that is at least `least_ratio` times as fast as the fastest baseline.

    A `least_ratio` of 0 needs no baseline. Baselines themselves are never chosen: FlashInfer runs them anyway.
    """
    if not subject.workloads:
        return Choice(reason="it has no Workloads; collect some first")
    own = [each for each in measurements if _counts(each, subject)]
    passed = _find_passed(subject, own, evidence)
    baseline = _find_fastest(own, subject.workloads)
    weights = find_weights(subject.workloads)
    choices = [
        _measure(solution, times, baseline, weights) for solution, times in passed if solution.author != BASELINE
    ]
    if not choices:
        wanted = f"all {len(subject.workloads)} Workloads on {subject.device}"
        return Choice(reason=f"no Solution but baselines has passed on {wanted}; run: fib bench {subject.definition}")
    best = min(choices, key=lambda choice: choice.milliseconds or math.inf)
    if not least_ratio:
        return best
    if best.ratio is None:
        reason = "no baseline has passed on all Workloads; run: fib baselines write, then fib bench"
        if baseline:
            reason = "the best and the baselines were timed in different ways on some Workload; run: fib bench --fresh"
        return replace(best, solution=None, reason=reason)
    if best.ratio < least_ratio:
        name = best.solution.name if best.solution else ""
        reason = f"the best, {name}, is {best.ratio:.3f} times as fast as the baseline"
        return replace(best, solution=None, reason=reason)
    return best


def _counts(measurement: Measurement, subject: Subject) -> bool:
    return (
        measurement.definition == subject.definition
        and measurement.device == subject.device
        and measurement.measured_by == OWN_TOOL
        and measurement.passed
        and bool(measurement.milliseconds)
    )


def _find_passed(
    subject: Subject, measurements: Sequence[Measurement], evidence: Mapping[str, Evidence]
) -> list[tuple[Solution, _Times]]:
    """Find the Solutions that passed on every Workload, with their times."""
    found: list[tuple[Solution, _Times]] = []
    for solution in subject.solutions:
        who = (solution.author, solution.name)
        own = (
            each for each in measurements if (each.author, each.solution) == who and _is_of(solution, each, evidence)
        )
        times = {each.workload: each for each in own if each.workload in subject.workloads}
        if len(times) == len(set(subject.workloads)):
            found.append((solution, times))
    return found


def _is_of(solution: Solution, measurement: Measurement, evidence: Mapping[str, Evidence]) -> bool:
    seen = evidence.get(measurement.evidence or "")
    return seen is None or seen.subject.solution_hash == hash_solution(solution)


def _find_fastest(measurements: Sequence[Measurement], workloads: Collection[str]) -> _Times:
    """Find the fastest baseline on each Workload; empty where one has none."""
    found: dict[str, Measurement] = {}
    for each in measurements:
        standing = found.get(each.workload)
        if each.author == BASELINE and (standing is None or _time(each) < _time(standing)):
            found[each.workload] = each
    return found if set(workloads) <= found.keys() else {}


def _measure(solution: Solution, times: _Times, baseline: _Times, weights: Mapping[str, float]) -> Choice:
    mean = geometric_mean((weights[uuid], _time(each)) for uuid, each in times.items())
    if not baseline or any(baseline[uuid].timer != each.timer for uuid, each in times.items()):
        return Choice(solution=solution, milliseconds=mean)
    ratio = geometric_mean((weights[uuid], _time(baseline[uuid]) / _time(each)) for uuid, each in times.items())
    return Choice(solution=solution, milliseconds=mean, ratio=ratio)


def _time(measurement: Measurement) -> float:
    return measurement.milliseconds or math.inf
