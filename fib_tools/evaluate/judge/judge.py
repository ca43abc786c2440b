"""The judge: has the runners of a Definition make their calls on a Workload, compares every output, and says what is true.

Nothing that was not written in this project runs in its process. Solutions take turns, so that what changes on the
machine meets all of them alike; what one computes while others have theirs is held against it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fib_tools.evaluate.engines.items import Task
from fib_tools.evaluate.judge.arena import Arena
from fib_tools.evaluate.judge.contest import Contest
from fib_tools.evaluate.judge.device import Device
from fib_tools.evaluate.judge.draws import DRAW_BYTES, Draws
from fib_tools.evaluate.judge.given import load_given_inputs
from fib_tools.evaluate.judge.outputs import Copy, Outputs, rehearse_comparisons
from fib_tools.evaluate.judge.refusal import RefusedError, blame_reference
from fib_tools.evaluate.judge.rounds import MOST_ROUNDS, Rounds
from fib_tools.evaluate.judge.runner import Runner, read_numbers
from fib_tools.evaluate.judge.scene import Batch, Scene, call, stage
from fib_tools.evaluate.judge.trial import Trial
from fib_tools.op_types.distribution import Distribution
from fib_tools.op_types.inputs import plan_inputs
from fib_tools.op_types.tolerance import Tolerance
from fib_tools.op_types.work import Work, find_work

__all__ = ["Judge", "Judgement"]

_CALLS = 12
_FEW_CALLS = 4
_ARENA_SHARE = 8
"""Outputs of a workload's calls take at most this part of the free memory, twice."""
_ROOM_SHARE = 256
"""This part of the device's memory they have from the first, if so much is free."""
_OUTPUT_BYTES = 512 << 20
"""Of all timed calls, which are compared value by value: where outputs are large, fewer calls tell as much."""
_REFERENCE_SECONDS = 4.0
"""So long the reference may compute for one workload; a slow one makes fewer calls."""
_FIRST_CALL = 4
"""So many times as long as all others a Solution's first call may take: it may compile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What came of a workload: a trial for each Solution, and what they have in common."""

    seed: int
    trials: tuple[Trial, ...]
    reference_ms: float | None
    work: Work | None


class Judge:
    """Holds the memory for outputs: the reference's, which no Solution's runner ever sees, and the Solutions'."""

    def __init__(self, device: Device, *, between: Callable[[], None], settle: Callable[[], None]) -> None:
        """Judge on a device; `between` is called after each turn of a Solution, `settle` before doubtful times are taken anew."""
        self._device = device
        self.between = between
        self.settle = settle
        self._want: Arena | None = None
        self._got: Arena | None = None

    def close(self) -> None:
        """Give the memory back."""
        for arena in (self._want, self._got):
            if arena is not None:
                arena.close()
        self._want = self._got = None

    def rehearse(self, task: Task, tolerances: Mapping[str, Tolerance]) -> None:
        """Make ready what the first Workload of a Definition would wait for."""
        rehearse_comparisons(self._device, task.definition, tolerances)

    def judge(
        self,
        contest: Contest,
        task: Task,
        *,
        master: int | None,
        tolerances: Mapping[str, Tolerance],
    ) -> Judgement:
        """Evaluate every Solution of a task.

        Raises:
            ReferenceFailedError: the reference itself fails.
        """
        seed = int.from_bytes(os.urandom(8), "little") >> 11 if master is None else master  # exact in JSON
        hearing = _Hearing(self, contest, task, seed=seed, tolerances=tolerances, device=self._device)
        with blame_reference():  # whatever a Solution does wrong ends in its trial
            return hearing.hold()

    def arenas(self, contest: Contest, size: int) -> tuple[Arena, Arena]:
        """Give both memories, large enough; with room to spare, since every runner has to open each new one."""
        if self._want is None or self._got is None or min(self._want.bytes, self._got.bytes) < size:
            roomy = max(size, min(self._device.total_bytes // _ROOM_SHARE, self.arena_limit))
            for arena in (self._want, self._got):
                if arena is not None:
                    contest.release(arena)
            self.close()
            self._want, self._got = Arena(roomy, self._device.kind), Arena(roomy, self._device.kind)
        return self._want, self._got

    @property
    def arena_limit(self) -> int:
        """How many bytes one of them may have."""
        held = self._want.bytes if self._want else 0
        return max(held, self._device.free_bytes // _ARENA_SHARE)


class _Hearing:
    """One workload, from staging to the last round."""

    def __init__(  # all that a workload's judgement rests on
        self,
        judge: Judge,
        contest: Contest,
        task: Task,
        *,
        seed: int,
        tolerances: Mapping[str, Tolerance],
        device: Device,
    ) -> None:
        self._judge, self._contest, self._task = judge, contest, task
        self._seed, self._tolerances, self._device = seed, tolerances, device
        limits = contest.limits
        self._build_seconds, self._seconds = limits.build_seconds, limits.evaluation_seconds
        self._trials = tuple(Trial(entrant=contest.admit(solution)) for solution in task.solutions)
        self._samples = any(tolerance.how == "samples" for tolerance in tolerances.values())
        self._reference_ms: float | None = None

    def hold(self) -> Judgement:
        reference = self._contest.reference
        reference.finish_build(self._build_seconds)
        reference.finish_first_call(self._build_seconds)
        work = self._prepare(reference)
        for trial in self._trials:
            self._turn(trial, self._check)
        for number in range(MOST_ROUNDS):
            for trial in self._rounds.choose(self._trials, number):
                self._turn(trial, self._rounds.time)
        for trial in self._trials:
            self._turn(trial, self._finish)
        for trial in self._rounds.list_unequal(self._trials):
            self._turn(trial, self._finish)
        self._contest.stop_all()
        return Judgement(seed=self._seed, trials=self._trials, reference_ms=self._reference_ms, work=work)

    def _prepare(self, reference: Runner) -> Work | None:
        """Have the reference compute all that the Solutions' outputs are compared with; count what must be done at least."""
        self._scene = self._stage(reference)
        size = self._scene.slots * self._scene.typical.layout.slot_bytes
        want, got = self._judge.arenas(self._contest, max(size, DRAW_BYTES) if self._samples else size)
        self._outputs = Outputs(self._device, self._tolerances, want=want, got=got, bytes_used=size)
        self._rounds = Rounds(
            self._device,
            self._task,
            self._scene,
            self._outputs,
            master=self._seed,
            limits=self._contest.limits,
            settle=self._judge.settle,
        )
        reference.take(want)
        self._held_out = self._hold_out(reference)
        self._ask_reference(reference)
        inputs = self._make_inputs()
        self._draws = Draws(self._task.definition, self._scene, inputs) if self._samples else None
        return self._find_work(inputs)

    def _stage(self, reference: Runner) -> Scene:
        """Choose how many calls are timed, by the memory for their outputs and the reference's own time."""
        definition, workload = self._task.definition, self._task.workload
        scene = stage(definition, workload, master=self._seed, calls=1)
        most = self._judge.arena_limit // scene.typical.layout.slot_bytes - scene.slots
        want, _ = self._judge.arenas(self._contest, scene.slots * scene.typical.layout.slot_bytes)
        reference.take(want)
        self._open(reference, *scene.checks)
        _, seconds = reference.time(call(scene.checks[0]), self._build_seconds)
        affordable = int(_REFERENCE_SECONDS * len(scene.checks[0].slots) / seconds)
        telling = _OUTPUT_BYTES // scene.typical.layout.slot_bytes
        calls = max(_FEW_CALLS, min(_CALLS, affordable, telling, most))
        return stage(definition, workload, master=self._seed, calls=calls)

    def _open(self, runner: Runner, *batches: Batch) -> None:
        runner.open({batch.staging.name: batch.staging.message for batch in batches}, self._build_seconds)

    def _ask_reference(self, reference: Runner) -> None:
        """Have the reference compute what all calls are compared with; its own times are a by-product."""
        reference.ask(call(*self._scene.checks), self._build_seconds)
        answer = reference.ask(self._scene.timed.measure(), self._build_seconds)
        times = read_numbers(answer.get("milliseconds"))
        self._reference_ms = sorted(times)[len(times) // 2] if times else None
        if self._task.is_large:
            reference.rest(self._seconds)
        reference.stop()

    def _find_work(self, inputs: Mapping[str, Any]) -> Work | None:
        """Count what must be done at least."""
        definition = self._task.definition
        return find_work(definition, {**self._task.workload.axes, **definition.const_axes}, inputs)

    def _make_inputs(self) -> dict[str, Any]:
        """Make the inputs of the first timed call, as the runners do."""
        scene = self._scene.typical
        definition = self._task.definition
        axes = {**self._task.workload.axes, **definition.const_axes}
        fixed = load_given_inputs(scene.message["inputs"], device=self._device.kind, root=self._contest.dataset)
        plan = plan_inputs(
            definition,
            axes,
            seed=scene.message["seed"],
            device=self._device.kind,
            fixed=fixed,
            distribution=Distribution.TYPICAL,
        )
        return plan.make(self._scene.timed.seeds[0])

    def _turn(self, trial: Trial, step: Callable[[Trial, Runner], None]) -> None:
        """Give a Solution its turn: nobody else runs, and whatever it does wrong ends its trial."""
        if trial.is_over:
            return
        trial.enter()
        try:
            runner = self._contest.ready(trial.entrant, self._build_seconds, first_call=_FIRST_CALL * self._seconds)
            trial.first_call_seconds = runner.first_call_seconds
            runner.take(self._outputs.got)
            step(trial, runner)
            runner.stop()
        except RefusedError as error:
            trial.refusal = error.refusal
            self._outputs.forget(trial)
        finally:
            trial.leave()
            self._judge.between()

    def _check(self, trial: Trial, runner: Runner) -> None:
        """Make the calls that nobody times, and compare them: typical values, other distributions, other lengths."""
        poison = self._outputs.poison()
        checks = self._scene.checks
        self._open(runner, *checks)
        late = "its first calls on this Workload, of which one may compile, did not end"
        runner.ask(call(*checks), (_FIRST_CALL + len(checks) - 1) * self._seconds, late=late)
        self._outputs.compare_checks(trial, checks, poison=poison)
        if self._draws is not None:
            self._draws.judge(self._contest.reference, runner, self._outputs.want, self._outputs.got)
        self._check_held_out(trial, runner)

    def _finish(self, trial: Trial, runner: Runner) -> None:
        """Take the times once more by the judge's own clock, and believe them or not."""
        self._rounds.finish(trial, runner, self._contest.reference)

    def _hold_out(self, reference: Runner) -> list[tuple[Batch, Copy]]:
        """Have the reference compute lengths that no Workload has; those that it cannot do are left out."""
        found = []
        want, got = self._outputs.want, self._outputs.got
        for batch in self._scene.held_out:
            size = batch.staging.layout.slot_bytes
            if size > min(want.bytes, got.bytes):
                continue
            try:
                self._open(reference, batch)
                reference.ask(call(batch), self._seconds)
            except RefusedError:
                if reference.is_dead:
                    raise
                continue
            found.append((batch, Copy(memory=want.copy(size))))
        return found

    def _check_held_out(self, trial: Trial, runner: Runner) -> None:
        """Try those lengths."""
        for batch, want in self._held_out:
            poison = self._outputs.poison(batch.staging.layout.slot_bytes)
            try:
                self._open(runner, batch)
                runner.ask(call(batch), self._seconds)
                self._outputs.compare(trial, batch, want, poison=poison, rule="wrong-distribution")
            except RefusedError as error:
                axes = ", ".join(f"{name}={length}" for name, length in batch.staging.message["axes"].items())
                raise error.at(f"with {axes}", rule="wrong-distribution") from error
            trial.distributions.append(batch.staging.name.rpartition("/")[2])
