"""What helps the author of a draft and changes no verdict: looked up when it was judged, in processes of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fib_tools.draft.attempt import Attempt, ShapeResult
from fib_tools.draft.bench import Bench
from fib_tools.errors import FibError
from fib_tools.evaluate.inspection import exactness, ncu
from fib_tools.evaluate.inspection.exactness import Exactness, list_numbers, measure_exactness
from fib_tools.evaluate.inspection.ncu import Profile, find_ncu, profile_solution
from fib_tools.evaluate.inspection.sample import Sample, Setting
from fib_tools.evaluate.judge.slots import SlotLayout
from fib_tools.host.gpu_sandbox import open_gpu_sandbox
from fib_tools.host.paths import list_import_paths
from fib_tools.host.sandbox import Sandbox
from fib_tools.model.evidence import Evidence
from fib_tools.model.trace import EvaluationStatus

__all__ = ["Inspector"]

_COMPARED = (EvaluationStatus.PASSED, EvaluationStatus.INCORRECT_NUMERICAL)
_MOST_SECONDS = 600.0
"""Of one call, what it compiles included; and of the wait for a GPU, since no verdict is kept before."""


class Inspector:
    """Compares what ran with float64, and profiles the best; whoever broke a rule or crashed is not run again."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._setting = Setting(
            definition=bench.bundle.definition,
            tolerances={name: bound.to_tolerance() for name, bound in bench.bundle.bounds.items()},
            device=bench.options.device,
            dataset=bench.dataset.root,
            seconds=_MOST_SECONDS,
        )
        self._workloads = {workload.uuid: workload for workload in bench.bundle.workloads}
        self._ncu = find_ncu() if bench.options.device == "cuda" else None

    def __call__(
        self, attempts: Sequence[Attempt], evidence: Sequence[Sequence[Evidence]], best: Attempt | None
    ) -> list[Attempt]:
        """Add to attempts what was found, in order; a profile to the best of all, if it is among them."""
        seen = {attempt.number: each for attempt, each in zip(attempts, evidence, strict=True)}
        samples = {attempt.number: sample for attempt in attempts if (sample := self._choose(attempt, seen))}
        leader = best if best is not None and best.number in seen else None
        if not samples and leader is None:
            return list(attempts)
        try:
            with self._open_sandbox() as sandbox:
                measured = measure_exactness(sandbox, self._setting, samples.values())
                profile = self._profile(sandbox, leader, seen[leader.number]) if leader else None
        except FibError as error:
            # the verdicts stand, and were paid for
            self._bench.tell(f"neither FP64 nor NCU: {error}")
            return list(attempts)
        found: dict[int, Exactness] = dict(zip(samples, measured, strict=True))
        return [
            each.model_copy(
                update={
                    "exactness": found.get(each.number),
                    "profile": profile if leader and each.number == leader.number else None,
                }
            )
            for each in attempts
        ]

    def _choose(self, attempt: Attempt, seen: dict[int, Sequence[Evidence]]) -> Sample | None:
        """Choose the first Workload that is wrong, or of a right attempt the one with the fewest outputs."""
        evidence = seen[attempt.number]
        if not evidence or not all(each.status in _COMPARED for each in evidence):
            return None
        definition = self._setting.definition
        if not list_numbers(definition, self._setting.tolerances):
            return None
        wrong = [each for each in evidence if each.status is not EvaluationStatus.PASSED]
        chosen = wrong[0] if wrong else min(evidence, key=lambda each: SlotLayout.of(definition, each.axes).slot_bytes)
        return self._sample(attempt, chosen)

    def _sample(self, attempt: Attempt, evidence: Evidence) -> Sample | None:
        workload = self._workloads[evidence.subject.workload]
        return Sample(solution=attempt.solution, workload=workload, seed=evidence.seed) if attempt.solution else None

    def _profile(self, sandbox: Sandbox, best: Attempt, evidence: Sequence[Evidence]) -> Profile | None:
        """Profile it where most is left to gain; it has passed on every Workload."""
        chosen = max(best.results, key=_find_gain)
        if self._ncu is None:
            missing = "there is no GPU" if self._setting.device == "cpu" else "it is not installed here"
            return Profile(axes=chosen.axes, problem=missing)
        behind = next(each for each in evidence if each.subject.workload == chosen.workload)
        sample = self._sample(best, behind)
        return profile_solution(sandbox, self._ncu, self._setting, sample) if sample else None

    @contextmanager
    def _open_sandbox(self) -> Iterator[Sandbox]:
        """Open a sandbox; on a GPU, which is held meanwhile."""
        programs = (self._ncu.resolve().parent,) if self._ncu else ()
        preload, readable = (*exactness.PRELOAD, *ncu.PRELOAD), (self._setting.dataset, *programs)
        if self._setting.device == "cpu":
            with Sandbox(preload, import_paths=list_import_paths(), readable=readable) as sandbox:
                yield sandbox
            return
        purpose = "a closer look at drafts"
        with open_gpu_sandbox(preload, command=purpose, readable=readable, timeout=_MOST_SECONDS) as sandbox:
            yield sandbox


def _find_gain(result: ShapeResult) -> float:
    """Weigh the time that is beyond the device's limit."""
    share = 1 - min(100.0, result.percent or 0.0) / 100
    return result.weight * (result.milliseconds or 0.0) * share
