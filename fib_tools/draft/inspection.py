"""What helps the author of a draft and changes no verdict: looked up when it was judged, in processes of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fib_tools.draft.attempt import Attempt
from fib_tools.draft.bench import Bench
from fib_tools.evaluate.calibration.exactness import PRELOAD, Sample, Setting, list_numbers, measure_exactness
from fib_tools.evaluate.judge.slots import SlotLayout
from fib_tools.host.env import engine_environment
from fib_tools.host.gpu_lock import acquire
from fib_tools.host.sandbox import Sandbox
from fib_tools.model.evidence import Evidence
from fib_tools.model.trace import EvaluationStatus

__all__ = ["Inspector"]

_COMPARED = (EvaluationStatus.PASSED, EvaluationStatus.INCORRECT_NUMERICAL)
_MOST_SECONDS = 600.0
"""Of one call, what it compiles included."""


class Inspector:
    """Compares what ran with float64; whoever broke a rule or crashed is not run again."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._setting = Setting(
            definition=bench.bundle.definition,
            tolerances={name: bound.to_tolerance() for name, bound in bench.bundle.bounds.items()},
            device=bench.options.device,
            dataset=bench.dataset.root,
            seconds=_MOST_SECONDS,
        )

    def __call__(self, attempts: Sequence[Attempt], evidence: Sequence[Sequence[Evidence]]) -> list[Attempt]:
        """Add to attempts what was found, in order."""
        is_of_numbers = bool(list_numbers(self._setting.definition, self._setting.tolerances))
        samples = {
            attempt.number: sample
            for attempt, seen in zip(attempts, evidence, strict=True)
            if is_of_numbers and (sample := self._choose(attempt, seen)) is not None
        }
        if not samples:
            return list(attempts)
        with self._open_sandbox() as sandbox:
            measured = measure_exactness(sandbox, self._setting, samples.values())
        found = dict(zip(samples, measured, strict=True))
        return [each.model_copy(update={"exactness": found.get(each.number)}) for each in attempts]

    def _choose(self, attempt: Attempt, evidence: Sequence[Evidence]) -> Sample | None:
        """Choose the first Workload that is wrong, or of a right attempt the one with the fewest outputs."""
        if attempt.solution is None or not all(each.status in _COMPARED for each in evidence) or not evidence:
            return None
        definition = self._setting.definition
        wrong = [each for each in evidence if each.status is not EvaluationStatus.PASSED]
        chosen = wrong[0] if wrong else min(evidence, key=lambda each: SlotLayout.of(definition, each.axes).slot_bytes)
        workloads = {workload.uuid: workload for workload in self._bench.bundle.workloads}
        return Sample(solution=attempt.solution, workload=workloads[chosen.subject.workload], seed=chosen.seed)

    @contextmanager
    def _open_sandbox(self) -> Iterator[Sandbox]:
        """Open a sandbox; on a GPU, which is held meanwhile."""
        packages = tuple(Path(entry) for entry in sys.path if entry and Path(entry).is_dir())
        readable = (self._setting.dataset,)
        if self._setting.device == "cpu":
            with Sandbox(PRELOAD, import_paths=packages, readable=readable) as sandbox:
                yield sandbox
            return
        with acquire(1, command="fib optimize") as lease:
            environment = {**engine_environment(), **lease.environment}
            with Sandbox(PRELOAD, import_paths=packages, readable=readable, environment=environment) as sandbox:
                yield sandbox
