"""The best known Solution for each call in a timeline, and how near it comes to the limit of the GPU it was measured on.

A span of a gemm with M = 70 says then: `best_solution: ana/cute_dsl`, `best_percent_of_limit: 84.2`,
`best_milliseconds: 0.0061`, `best_measured_on: NVIDIA H200`, `best_measured_with: M 64`, `best_timer: cupti`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fib_tools.capture.timeline import AXIS, Span, Timeline, Value
from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.engines.items import hash_solution
from fib_tools.evaluate.report.report_reading import OWN_TOOL, Reading, read_measurements
from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.model.evidence import Evidence

__all__ = ["Best", "annotate_best", "find_best"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """What is known of the Definitions of one run."""

    measurements: Mapping[str, tuple[Measurement, ...]]
    """By Definition: those that passed."""
    axes: Mapping[str, Mapping[str, int]]
    """By uuid of a Workload."""
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    """By key."""
    problems: tuple[str, ...] = ()
    """Traces and evidence that could not be read, or contradict each other."""

    def choose(self, definition: str, axes: Mapping[str, int]) -> Measurement | None:
        """Choose the fastest on the Workload whose lengths are nearest, by ratio; None where nothing has passed."""
        known = self.measurements.get(definition, ())
        if not known:
            return None
        nearest = min({each.workload for each in known}, key=lambda uuid: (_measure_gap(axes, self.axes[uuid]), uuid))
        here = [each for each in known if each.workload == nearest]
        return min(here, key=lambda each: (each.milliseconds or math.inf, each.author, each.solution))


def find_best(dataset: Dataset, definitions: Collection[str], *, gpu: str | None = None) -> Best:
    """Find what has passed of some Definitions: by `fib bench`, with a Solution that is still there as it was measured.

    Another tool's Traces are left out, as `fib apply` does: many that cheat pass there. Baselines count as others do.

    Raises:
        StorageError: a folder cannot be read.
    """
    reading = read_measurements(dataset, definitions=set(definitions))
    passed = [each for each in reading.measurements if _counts(each, gpu)]
    hashes = _hash_solutions(dataset, {(each.op_type, each.definition) for each in passed})
    found: dict[str, list[Measurement]] = {}
    for each in passed:
        if _is_unchanged(each, reading, hashes):
            found.setdefault(each.definition, []).append(each)
    return Best(
        measurements={name: tuple(of_one) for name, of_one in found.items()},
        axes=reading.axes,
        evidence=reading.evidence,
        problems=reading.problems,
    )


def annotate_best(timeline: Timeline, best: Best) -> Timeline:
    """Write it on every span that names a Definition of which something is known."""
    return timeline.model_copy(update={"spans": tuple(_annotate(span, best) for span in timeline.spans)})


_Key = tuple[str, str, str]
"""Definition, author and name of a Solution."""


def _counts(each: Measurement, gpu: str | None) -> bool:
    return each.passed and each.measured_by == OWN_TOOL and bool(each.milliseconds) and gpu in {None, each.device}


def _hash_solutions(dataset: Dataset, kinds: Iterable[tuple[str, str]]) -> dict[_Key, str]:
    """Hash the Solutions that are there; one that cannot be read is as good as gone."""
    return {
        (definition, solution.author, solution.name): hash_solution(solution)
        for op_type, definition in sorted(kinds)
        for solution in dataset.read_solutions(op_type, definition)[0]
    }


def _is_unchanged(each: Measurement, reading: Reading, hashes: Mapping[_Key, str]) -> bool:
    now = hashes.get((each.definition, each.author, each.solution))
    seen = reading.evidence.get(each.evidence or "")
    return now is not None and (seen is None or seen.subject.solution_hash == now)


def _measure_gap(have: Mapping[str, int], want: Mapping[str, int]) -> float:
    """Add up how many times as long the lengths are that both name."""
    return sum(abs(math.log((have[name] + 1) / (want[name] + 1))) for name in have.keys() & want.keys())


def _annotate(span: Span, best: Best) -> Span:
    definition = str(span.details.get("definition", ""))
    axes = {
        name.removeprefix(AXIS): value
        for name, value in span.details.items()
        if name.startswith(AXIS) and isinstance(value, int)
    }
    chosen = best.choose(definition, axes)
    if chosen is None:
        return span
    return span.model_copy(update={"details": {**span.details, **_describe(chosen, best.axes[chosen.workload])}})


def _describe(chosen: Measurement, axes: Mapping[str, int]) -> dict[str, Value]:
    told: dict[str, Value] = {
        "best_solution": f"{chosen.author or 'unknown'}/{chosen.solution}",
        "best_milliseconds": chosen.milliseconds or 0.0,
        "best_measured_on": chosen.device,
        "best_measured_with": ", ".join(f"{name} {length}" for name, length in axes.items()),
    }
    if chosen.percent is not None:
        told["best_percent_of_limit"] = round(chosen.percent, 1)
    if chosen.timer:
        told["best_timer"] = chosen.timer
    return told
