"""The worker: one process that holds one device, and judges on it one task after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from fib_tools.errors import RequestError
from fib_tools.evaluate.engines.engine import Place
from fib_tools.evaluate.engines.items import Plan, SolutionRef, Task
from fib_tools.evaluate.judge.contest import Contest, RunnerMaker
from fib_tools.evaluate.judge.device import Device
from fib_tools.evaluate.judge.judge import Judge, Judgement
from fib_tools.evaluate.judge.measurement import as_series
from fib_tools.evaluate.judge.refusal import ReferenceFailedError
from fib_tools.evaluate.judge.runner import PRELOAD
from fib_tools.evaluate.judge.trial import Trial
from fib_tools.host.env import engine_environment
from fib_tools.host.paths import list_import_paths
from fib_tools.host.sandbox import Limits, Sandbox
from fib_tools.model.evidence import Build, Evidence, Launch, Timer
from fib_tools.model.trace import EvaluationStatus
from fib_tools.op_types.tolerance import Tolerance

__all__ = ["Worker"]

_MOST_RUNNERS = 30
_CONTEXT_BYTES, _CONTEXTS_SHARE = 512 << 20, 8
"""Of a process's context on the GPU, and the part of its memory that contexts of groups to come may take."""
_APART_SECONDS, _ALONE_SECONDS = 0.5, 2.0
"""For so long a group builds before the next may begin, while others are measured and while it is waited for: contexts on a
GPU are made one after the other. What takes longer than this imports or compiles, and does not need the GPU."""
_SOON_SECONDS = 6.0
"""Since its begin; a group that builds longer compiles, and others are measured before it."""
_LOOK_SECONDS = 0.1
_GROUPS_COMPILE = 4
"""At once, as a rule: each has such a part of the machine, unless MAX_JOBS says otherwise."""
_FASTER_THAN_LIMIT = 1.5
"""A copy's rate is no strict bound: reads alone are faster than reads and writes in turn."""


class Worker:
    """Judges the tasks it is given; made in a process where CUDA has not been touched."""

    def __init__(self, plan: Plan, place: Place) -> None:
        self._plan = plan
        self._kind = "cpu" if place.device == "cpu" else "cuda"
        jobs = {"MAX_JOBS": str(max(2, (os.cpu_count() or 1) // _GROUPS_COMPILE))}
        environment = {**jobs, **engine_environment()} if self._kind == "cuda" else None
        self._sandbox = Sandbox(
            PRELOAD,
            limits=Limits(gpu=self._kind == "cuda"),
            import_paths=list_import_paths(),
            readable=(Path(plan.dataset),),
            environment=environment,
        )
        self._sandbox.__enter__()
        self._maker = RunnerMaker(sandbox=self._sandbox, device=self._kind, dataset=plan.dataset, options=plan.options)
        self._contests: dict[tuple[str, int], Contest] = {}
        self._coming: dict[tuple[str, int], Task] = {}
        """One of each group that is to be prepared as soon as those before it have built."""
        self._prepared: list[tuple[str, int]] = []
        """Groups that are to be measured, in this order unless others take them."""
        self._last = ("", 0)
        """The group that was measured last."""
        self._was_large = False
        """One of its Workloads was."""
        self._device = Device(self._kind)
        self._judge = Judge(self._device, between=self._advance, settle=self._settle)
        if self._device.gpu.name != plan.hardware:
            raise RequestError(
                f"this worker has a {self._device.gpu.name}, the plan is for {plan.hardware}",
                todo="start a run of its own for each model of GPU",
            )
        _ = self._device.rates  # measured while the sandbox's process imports what runners need

    def prepare(self, task: Task) -> None:
        """Fork and build a Definition's runners while another is measured, unless there are many already.

        One group may always be prepared, and more where there is memory; on a CPU they would disturb the measurement.
        """
        self._coming[_name(task)] = task
        self._prepared.append(_name(task))
        self._open_next(_ALONE_SECONDS)

    def _open_next(self, apart: float) -> None:
        """Open a group that is to be prepared, if no other has begun within so many seconds and still builds."""
        if not self._coming or any(contest.is_building(apart) for contest in self._contests.values()):
            return
        task = self._coming.pop(next(iter(self._coming)))
        runners = sum(contest.size for contest in self._contests.values())
        affordable = self._device.total_bytes // _CONTEXTS_SHARE // _CONTEXT_BYTES
        if len(self._contests) < 2 or runners + len(task.solutions) < min(_MOST_RUNNERS, affordable):
            self._open(task)

    def _open(self, task: Task) -> Contest:
        key = _name(task)
        self._coming.pop(key, None)
        if key not in self._contests:
            self._contests[key] = Contest(self._maker, task)
        return self._contests[key]

    def is_ready(self, task: Task, seconds: float) -> bool:
        """Tell whether a task's Solutions have built and made their first calls, or have had the time for it.

        What may be soon is waited for; what compiles, no longer than `seconds`. On a CPU, where to compile would disturb
        what is measured, evaluating waits.
        """
        name = _name(task)
        if name == self._last or self._kind == "cpu":
            return True
        contest = self._open(task)
        self._judge.rehearse(task, _read_tolerances(task))  # while it builds
        deadline = time.monotonic() + seconds
        self._advance(_ALONE_SECONDS)
        while contest.is_building(self._plan.options.limits.build_seconds):
            if time.monotonic() >= deadline and not contest.is_building(_SOON_SECONDS):
                self._prepared = [each for each in self._prepared if each != name]
                return False
            contest.wait_building(_LOOK_SECONDS)
            self._advance(_ALONE_SECONDS)
        return True

    def evaluate(self, task: Task) -> Iterator[Evidence | None]:
        """Judge a task's Solutions side by side."""
        self._drop_taken(task)
        contest = self._open(task)
        self._close_last(task)
        begun = time.perf_counter()
        options = self._plan.options
        try:
            judgement = self._judge.judge(contest, task, master=options.seed, tolerances=_read_tolerances(task))
        except ReferenceFailedError as error:
            self._drop(_name(task))
            raise RequestError(
                f"the reference failed: {error.refusal.detail}",
                where=f"{task.definition.name}, workload {task.workload.uuid}",
                todo="mend the Definition or the Workload: fib tests run tries the reference alone",
            ) from error
        seconds = (time.perf_counter() - begun) / max(1, len(judgement.trials))
        for ref, trial in zip(task.item.solutions, judgement.trials, strict=True):
            yield self._to_evidence(task, ref, trial, judgement, seconds)

    def forget(self, definition: str) -> None:
        """End what was prepared of a Definition that others have taken."""
        self._prepared = [name for name in self._prepared if name[0] != definition]
        for name in [name for name in (*self._coming, *self._contests) if name[0] == definition]:
            self._drop(name)

    def _advance(self, apart: float = _APART_SECONDS) -> None:
        """Have the runners go on that build meanwhile, and those of another group begin."""
        for contest in self._contests.values():
            contest.advance()
        self._open_next(apart)

    def _settle(self) -> None:
        """Wait for runners that start or make their first calls: they hold up the one that is measured. Not for compilers."""
        deadline = time.monotonic() + _SOON_SECONDS
        for contest in self._contests.values():
            while contest.is_building(_SOON_SECONDS) and time.monotonic() < deadline:
                contest.wait_building(_LOOK_SECONDS)
                contest.advance()

    def _close_last(self, task: Task) -> None:
        """End the runners of the group before: it is done. The next one may need the memory that it had."""
        if self._last != _name(task):
            done = self._contests.pop(self._last, None)
            if done is not None:
                done.close(waits=self._was_large)
            self._was_large = False
        self._last = _name(task)
        self._was_large |= task.is_large

    def _drop_taken(self, task: Task) -> None:
        """End what was to be measured before this: others have taken it."""
        name = _name(task)
        if name in self._prepared:
            place = self._prepared.index(name)
            for taken in self._prepared[:place]:
                self._drop(taken)
            self._prepared = self._prepared[place + 1 :]

    def _drop(self, name: tuple[str, int]) -> None:
        self._coming.pop(name, None)
        contest = self._contests.pop(name, None)
        if contest is not None:
            contest.close()

    def close(self) -> None:
        """End all runners and give back the device's memory."""
        for contest in self._contests.values():
            contest.close()
        self._contests.clear()
        self._judge.close()
        self._sandbox.__exit__(None, None, None)

    def _to_evidence(
        self, task: Task, ref: SolutionRef, trial: Trial, judgement: Judgement, seconds: float
    ) -> Evidence:
        timer = Timer.HOST if self._kind == "cpu" else self._plan.options.timer
        launch = Launch.GRAPH if trial.is_captured else Launch.EAGER
        cold = as_series(trial.cold, Timer.GRAPH if trial.is_captured else timer, launch) if trial.cold else None
        eager = [as_series(trial.eager, timer, Launch.EAGER)] if trial.eager else []
        roofline = self._device.roofline(judgement.work, cold.milliseconds) if cold else None
        refusal = trial.refusal
        status, rule, detail = EvaluationStatus.PASSED, None, ""
        if refusal is not None:
            status, rule, detail = refusal.status, refusal.rule, refusal.detail
        elif (
            cold is not None
            and (floor := self._device.floor_ms(judgement.work)) > _FASTER_THAN_LIMIT * cold.milliseconds
        ):
            status, rule = EvaluationStatus.RUNTIME_ERROR, "too-fast"
            detail = f"{cold.milliseconds:.6g} ms for work that takes at least {floor:.6g} ms on this device"
        return Evidence(
            subject=task.item.subject(ref, self._plan.hardware),
            status=status,
            rule=rule,
            detail=detail,
            axes=dict(task.workload.axes),
            op_type=task.definition.op_type,
            seed=judgement.seed,
            calls=trial.calls,
            distributions=trial.distributions,
            errors=trial.errors,
            series=[*([cold] if cold else []), *eager, *trial.others],
            reference_ms=judgement.reference_ms,
            roofline=roofline,
            kernels=trial.kernels,
            gpu=self._device.gpu,
            clocks=trial.clocks,
            libs=trial.entrant.libs,
            protections=trial.entrant.protections,
            build=Build(seconds=trial.entrant.build_seconds, first_call_seconds=trial.first_call_seconds),
            timestamp=_now(),
            seconds=seconds,
        )


def _name(task: Task) -> tuple[str, int]:
    """Name what a task shares runners with."""
    return task.item.definition, task.item.heat


def _read_tolerances(task: Task) -> dict[str, Tolerance]:
    return {name: bound.to_tolerance() for name, bound in task.bounds.items()}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
