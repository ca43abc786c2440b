"""The judge: has the runners of a Definition make their calls on a Workload, compares every output, and says what is true.

Nothing that was not written in this project runs in its process. Solutions take turns, so that what changes on the
machine meets all of them alike; what one computes while others have theirs is held against it.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fib_tools.evaluate.engines.items import Task
from fib_tools.evaluate.judge.arena import Arena
from fib_tools.evaluate.judge.comparison import Verdict, compare_outputs, compare_parts, find_unwritten
from fib_tools.evaluate.judge.contest import Contest
from fib_tools.evaluate.judge.device import Device
from fib_tools.evaluate.judge.draws import DRAW_BYTES, Draws
from fib_tools.evaluate.judge.given import load_given_inputs
from fib_tools.evaluate.judge.measurement import count_missing, find_fault, has_enough
from fib_tools.evaluate.judge.refusal import Refusal, RefusedError
from fib_tools.evaluate.judge.runner import Runner
from fib_tools.evaluate.judge.scene import Batch, Scene, call, derive_seed, stage
from fib_tools.evaluate.judge.stopwatch import time_loops
from fib_tools.evaluate.judge.trial import Trial
from fib_tools.model.solution import BASELINE
from fib_tools.model.trace import EvaluationStatus
from fib_tools.op_types.distribution import Distribution
from fib_tools.op_types.inputs import plan_inputs
from fib_tools.op_types.tolerance import Tolerance
from fib_tools.op_types.work import Work, find_work

if TYPE_CHECKING:
    import torch

__all__ = ["Judge", "Judgement"]

_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 6
_CALLS = 12
_FEW_CALLS = 4
_EAGER_CALLS = 8
"""Eager calls that are timed where a graph gives the figure: they show what the graph hides."""
_FEWEST_REPLAYS, _MOST_REPLAYS = 4, 128
_REPLAY_MS = 2.0
"""Of the first round of replays, flushes included; later rounds have as many as are missing, within a time."""
_LONGEST_ROUND_MS = 400.0
_USUAL_ROUND_MS, _MORE = 20.0, 4
"""A round takes no longer than this, unless it has at most so many times as many replays as there were: few samples tell
badly how many are missing."""
_FLUSH_MS = 0.05
"""Of one flush, and of every fourth one that is timed by itself."""
_DOUBTS = 2
"""So many times a Solution whose times are unbelievable is timed anew: something else may have used the device."""
_ROUNDS_ANEW = 2
_LOOPED_SETS = 8
"""Sets of inputs that a loop goes through, if one round through them takes no longer than `_LOOPED_MS`."""
_LOOPED_MS = 1.0
_ARENA_SHARE = 8
"""Outputs of a workload's calls take at most this part of the free memory, twice, and inputs of a graph's calls too."""
_KEPT_SHARE = 16
"""Outputs that were found right are kept while they take at most this part of the free memory, all together."""
_OUTPUT_BYTES = 512 << 20
"""Of all timed calls, which are compared value by value: where outputs are large, fewer calls tell as much."""
_REFERENCE_SECONDS = 4.0
"""So long the reference may compute for one workload; a slow one makes fewer calls."""
_FIRST_CALL = 4
"""So many times as long as all others a Solution's first call may take: it may compile."""
_LIBRARY_KERNELS = ("flashinfer", "deep_gemm", "sgl_kernel", "vllm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What came of a workload: a trial for each Solution, and what they have in common."""

    seed: int
    trials: tuple[Trial, ...]
    reference_ms: float | None
    work: Work | None


class Judge:
    """Holds the memory for outputs: the reference's, which no Solution's runner ever sees, and the Solutions'."""

    def __init__(self, device: Device, *, between: Callable[[], None]) -> None:
        """Judge on a device; `between` is called after each turn of a Solution."""
        self._device = device
        self.between = between
        self._want: Arena | None = None
        self._got: Arena | None = None

    def close(self) -> None:
        """Give the memory back."""
        for arena in (self._want, self._got):
            if arena is not None:
                arena.close()
        self._want = self._got = None

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
            RefusedError: the reference itself fails.
        """
        seed = int.from_bytes(os.urandom(8), "little") >> 11 if master is None else master  # exact in JSON
        hearing = _Hearing(self, contest, task, seed=seed, tolerances=tolerances, device=self._device)
        return hearing.hold()

    def arenas(self, contest: Contest, size: int) -> tuple[Arena, Arena]:
        """Give both memories, large enough."""
        if self._want is None or self._got is None or min(self._want.bytes, self._got.bytes) < size:
            for arena in (self._want, self._got):
                if arena is not None:
                    contest.release(arena)
            self.close()
            self._want, self._got = Arena(size, self._device.kind), Arena(size, self._device.kind)
        return self._want, self._got

    @property
    def arena_limit(self) -> int:
        """How many bytes one of them may have."""
        held = self._want.bytes if self._want else 0
        return max(held, self._device.free_bytes // _ARENA_SHARE)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Copy:
    """Outputs of the reference that were put aside."""

    memory: torch.Tensor


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
        self._right: dict[int, dict[str, torch.Tensor]] = {}
        """Outputs of the timed calls that were found right, by trial."""
        self._reference_ms: float | None = None
        self._is_cpu = device.kind == "cpu"

    def hold(self) -> Judgement:
        reference = self._contest.reference
        reference.finish_build(self._build_seconds)
        reference.finish_first_call(self._build_seconds)
        work = self._prepare(reference)
        for trial in self._trials:
            self._turn(trial, self._check)
        self._measure()
        for trial in self._trials:
            self._turn(trial, self._finish)
        self._contest.stop_all()
        return Judgement(seed=self._seed, trials=self._trials, reference_ms=self._reference_ms, work=work)

    def _prepare(self, reference: Runner) -> Work | None:
        """Have the reference compute all that the Solutions' outputs are compared with; count what must be done at least."""
        self._scene = self._stage(reference)
        size = self._scene.slots * self._slot_bytes
        self._want, self._got = self._judge.arenas(self._contest, max(size, DRAW_BYTES) if self._samples else size)
        reference.take(self._want)
        self._held_out = self._hold_out(reference)
        self._ask_reference(reference)
        inputs = self._make_inputs()
        self._draws = Draws(self._task.definition, self._scene, inputs) if self._samples else None
        return self._find_work(inputs)

    @property
    def _slot_bytes(self) -> int:
        return self._scene.typical.layout.slot_bytes

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
        times = _numbers(answer.get("milliseconds"))
        self._reference_ms = sorted(times)[len(times) // 2] if times else None
        self._put_to_rest(reference)
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
            runner.take(self._got)
            step(trial, runner)
            runner.stop()
        except RefusedError as error:
            trial.refusal = error.refusal
            self._right.pop(id(trial), None)
        finally:
            trial.leave()
            self._judge.between()

    def _check(self, trial: Trial, runner: Runner) -> None:
        """Make the calls that nobody times, and compare them: typical values, other distributions, other lengths."""
        poison = self._got.poison(self._scene.slots * self._slot_bytes)
        checks = self._scene.checks
        self._open(runner, *checks)
        runner.ask(call(*checks), (_FIRST_CALL + len(checks) - 1) * self._seconds)
        self._compare_checks(trial, poison=poison)
        if self._draws is not None:
            self._draws.judge(self._contest.reference, runner, self._want, self._got)
        self._check_held_out(trial, runner)

    def _compare_checks(self, trial: Trial, *, poison: int) -> None:
        """Compare all of them at once: launching the kernels that measure errors takes longer than they do."""
        checks = self._scene.checks
        counts = [len(batch.slots) for batch in checks]
        ours, theirs = (_slots(checks[0], arena, 0, sum(counts)) for arena in (self._got, self._want))
        verdicts = compare_parts(ours, theirs, self._tolerances, counts)
        for number, (batch, verdict) in enumerate(zip(checks, verdicts, strict=True)):
            name = str(batch.staging.message["distribution"])
            rule = "wrong-distribution" if number else "wrong-values"
            calls = slice(batch.slots[0], batch.slots[-1] + 1)
            pair = [{output: value[calls] for output, value in side.items()} for side in (ours, theirs)]
            try:
                self._take_verdict(trial, verdict, *pair, poison=poison, rule=rule)
            except RefusedError as error:
                if number == 0:
                    raise
                raise error.at(f"on {name} inputs") from error
            trial.distributions.append(name)

    def _hold_out(self, reference: Runner) -> list[tuple[Batch, _Copy]]:
        """Have the reference compute lengths that no Workload has; those that it cannot do are left out."""
        found = []
        for batch in self._scene.held_out:
            size = batch.staging.layout.slot_bytes
            if size > min(self._want.bytes, self._got.bytes):
                continue
            try:
                self._open(reference, batch)
                reference.ask(call(batch), self._seconds)
            except RefusedError:
                if reference.is_dead:
                    raise
                continue
            found.append((batch, _Copy(memory=self._want.copy(size))))
        return found

    def _check_held_out(self, trial: Trial, runner: Runner) -> None:
        """Try those lengths."""
        for batch, want in self._held_out:
            poison = self._got.poison(batch.staging.layout.slot_bytes)
            try:
                self._open(runner, batch)
                runner.ask(call(batch), self._seconds)
                self._compare(trial, batch, want, poison=poison, rule="wrong-distribution")
            except RefusedError as error:
                axes = ", ".join(f"{name}={length}" for name, length in batch.staging.message["axes"].items())
                raise error.at(f"with {axes}", rule="wrong-distribution") from error
            trial.distributions.append(batch.staging.name.rpartition("/")[2])

    def _compare(
        self,
        trial: Trial,
        batch: Batch,
        want: Arena | _Copy,
        *,
        poison: int,
        rule: str = "wrong-values",
        ours: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Compare the outputs of a batch, or a copy of them.

        Raises:
            RefusedError: one is wrong, or was not written.
        """
        first, count = batch.slots[0], len(batch.slots)
        mine = _slots(batch, self._got, first, count) if ours is None else ours
        theirs = _slots(batch, want, first, count)
        verdict = compare_outputs(mine, theirs, self._tolerances)
        self._take_verdict(trial, verdict, mine, theirs, poison=poison, rule=rule)

    def _take_verdict(
        self,
        trial: Trial,
        verdict: Verdict,
        ours: Mapping[str, torch.Tensor],
        theirs: Mapping[str, torch.Tensor],
        *,
        poison: int,
        rule: str,
    ) -> None:
        """Note the errors of some calls.

        Raises:
            RefusedError: an output is wrong, or was not written.
        """
        trial.calls += len(next(iter(ours.values()), ()))
        trial.take_errors(verdict.errors)
        if verdict.is_right:
            return
        for name in ours:
            missing = find_unwritten(ours[name], theirs[name], bytes([poison]))
            if missing is not None:
                raise RefusedError(EvaluationStatus.INCORRECT_NUMERICAL, f"{name}: {missing}", rule="unwritten")
        raise RefusedError(EvaluationStatus.INCORRECT_NUMERICAL, verdict.detail, rule=rule)

    def _compare_timed(self, trial: Trial, batch: Batch, *, poison: int) -> None:
        """Compare the outputs of timed calls; the bits that were found right when these calls were made before are right.

        Most kernels give the same bits each time, and to see that takes a tenth of the time of measuring errors.
        """
        got = _slots(batch, self._got, batch.slots[0], len(batch.slots))
        known = self._right.get(id(trial), {})
        same = _count_same(got, known)
        trial.calls += same
        if same == len(batch.slots):
            return
        self._right.pop(id(trial), None)
        kept = sum(map(_count_bytes, self._right.values())) + _count_bytes(got)
        keeps = kept <= self._device.free_bytes // _KEPT_SHARE
        # what is kept is what is compared: the memory itself is in a process's hands that is not trusted
        left = {name: value[same:].clone() if keeps else value[same:] for name, value in got.items()}
        self._compare(trial, batch.part(same, len(batch.slots)), self._want, poison=poison, ours=left)
        if keeps:
            self._right[id(trial)] = _join(known, left) if same else left

    def _measure(self) -> None:
        """Time in rounds, in which every Solution has its turn, until the figures are sure or the budget is spent."""
        least = 1 if self._is_cpu else _FEWEST_ROUNDS
        for number in range(_MOST_ROUNDS):
            waiting = [
                trial
                for trial in self._trials
                if not trial.is_over and not (number >= least and has_enough(trial, is_cpu=self._is_cpu))
            ]
            for trial in _order(waiting, number):
                self._turn(trial, self._time)

    def _time(self, trial: Trial, runner: Runner) -> None:
        """Give a Solution one round."""
        self._time_batch(trial, runner, self._scene.timed)

    def _time_batch(self, trial: Trial, runner: Runner, batch: Batch) -> None:
        """Replay a graph of the calls where they can be captured, and make eager calls where not."""
        before = self._device.clocks()
        if trial.is_captured is None or (trial.is_captured and not trial.eager):
            eager = self._time_eager(trial, runner, batch.part(0, _EAGER_CALLS))
            if trial.is_captured is None:
                trial.is_captured = not self._is_cpu and self._fits(len(batch.slots)) and self._capture(trial, runner)
            trial.eager = eager if trial.is_captured else []
        if trial.is_captured:
            self._replay(trial, runner, batch)
        else:
            times = self._time_eager(trial, runner, batch)
            trial.fresh, trial.again = (trial.fresh, trial.again + times) if trial.fresh else (times, [])
        trial.clocks = self._device.clocks(before)

    def _fits(self, sets: int) -> bool:
        """Tell whether the inputs of so many calls fit into memory together."""
        return self._task.input_bytes * sets <= self._device.free_bytes // _ARENA_SHARE

    def _put_to_rest(self, runner: Runner) -> None:
        """Have a runner give back what it keeps of a large workload: those after it need the memory."""
        if self._task.is_large and not runner.is_dead:
            runner.ask({"do": "rest"}, self._seconds)

    def _capture(self, trial: Trial, runner: Runner) -> bool:
        """Have a graph made on contents that are not timed."""
        batch = self._scene.timed
        seeds = [derive_seed(self._seed, self._task.workload.uuid, "capture", slot) for slot in batch.slots]
        answer = runner.ask(
            {"do": "capture", "name": batch.staging.name, "seeds": seeds, "slots": batch.slots}, self._seconds
        )
        flushes = answer.get("flushes")
        trial.flushes = flushes if isinstance(flushes, int) and 0 < flushes <= len(batch.slots) else len(batch.slots)
        return answer.get("captured") is True

    def _replay(self, trial: Trial, runner: Runner, batch: Batch) -> None:
        """Replay once on new contents, then on the same ones; the outputs of both are compared."""
        if not trial.fresh:
            trial.fresh = self._replay_once(trial, runner, batch, batch.seeds, 1)
        replay_ms = trial.fresh[0] * len(batch.slots) + _FLUSH_MS * trial.flushes
        wanted = round(_REPLAY_MS / replay_ms)
        if trial.again:
            wanted = min(count_missing(trial), max(_MORE * len(trial.again), int(_USUAL_ROUND_MS / replay_ms)))
        times = max(_FEWEST_REPLAYS, min(_MOST_REPLAYS, wanted, int(_LONGEST_ROUND_MS / replay_ms)))
        trial.again += self._replay_once(trial, runner, batch, (), times)

    def _replay_once(self, trial: Trial, runner: Runner, batch: Batch, seeds: Sequence[int], times: int) -> list[float]:
        poison = self._got.poison(self._scene.slots * self._slot_bytes)
        answer = runner.ask({"do": "replay", "seeds": seeds, "times": times}, self._seconds)
        milliseconds = _read_times(answer, "milliseconds", times)
        self._compare_timed(trial, batch, poison=poison)
        return milliseconds

    def _time_eager(self, trial: Trial, runner: Runner, batch: Batch) -> list[float]:
        poison = self._got.poison(self._scene.slots * self._slot_bytes)
        answer = runner.ask(batch.measure(), self._seconds)
        milliseconds = _read_times(answer, "milliseconds", len(batch.slots))
        trial.host += _read_times(answer, "host_microseconds", len(batch.slots))
        trial.busy += _numbers(answer.get("busy_milliseconds"))
        kernels = answer.get("kernels")
        trial.kernels = [str(name) for name in kernels] if isinstance(kernels, list) else []
        self._check_kernels(trial)
        self._compare_timed(trial, batch, poison=poison)
        return milliseconds

    def _check_kernels(self, trial: Trial) -> None:
        """Find a library's kernels by their names, however they were called."""
        if trial.entrant.solution.author == BASELINE:
            return
        for name in trial.kernels:
            library = next((each for each in _LIBRARY_KERNELS if each in name), None)
            if library is not None:
                detail = f"the kernel {name[:120]} is {library}'s own"
                raise RefusedError(EvaluationStatus.RUNTIME_ERROR, detail, rule="library-kernel")

    def _finish(self, trial: Trial, runner: Runner) -> None:
        """Refuse times that stay unbelievable when they are taken again."""
        fault = self._find_fault(trial, runner)
        for number in range(_DOUBTS):
            if fault is not None:
                self._time_anew(trial, runner, number)
                fault = self._find_fault(trial, runner)
        self._put_to_rest(runner)
        if fault is not None:
            raise RefusedError(fault.status, fault.detail, rule=fault.rule)

    def _find_fault(self, trial: Trial, runner: Runner) -> Refusal | None:
        """Time loops by the judge's own clock, and weigh all figures."""
        affordable = max(2, min(_LOOPED_SETS, round(_LOOPED_MS / max(statistics.median(trial.cold), 1e-6))))
        sets = affordable if self._fits(affordable) else 1
        try:
            trial.others = time_loops(runner, self._scene.typical, trial, sets=sets, has_graphs=not self._is_cpu)
        except RefusedError as error:
            if error.refusal.rule != "stopwatch":
                raise
            return error.refusal
        return find_fault(trial, is_cpu=self._is_cpu)

    def _time_anew(self, trial: Trial, runner: Runner, number: int) -> None:
        """Throw the times away, and make the calls on contents that are new again."""
        reference, batch = self._contest.reference, self._scene.timed.anew(number)
        runner.stop()
        reference.ask(call(batch), self._build_seconds)
        reference.stop()
        trial.forget_times()
        self._right.pop(id(trial), None)
        try:
            for _ in range(_ROUNDS_ANEW):
                self._time_batch(trial, runner, batch)
        finally:
            reference.ask(call(self._scene.timed), self._build_seconds)
            reference.stop()


def _order(trials: list[Trial], number: int) -> Iterable[Trial]:
    """Go forth and back, so that no Solution always comes first."""
    return reversed(trials) if number % 2 else trials


def _slots(batch: Batch, arena: Arena | _Copy, first: int, count: int) -> dict[str, torch.Tensor]:
    stacked = batch.staging.layout.stack(arena.memory, first + count)
    return {name: value[first:] for name, value in stacked.items()}


def _count_same(got: Mapping[str, torch.Tensor], known: Mapping[str, torch.Tensor]) -> int:
    """Count the calls, from the first on, of which outputs are known; none, if a single bit differs."""
    import torch

    count = min((min(len(value), len(got[name])) for name, value in known.items()), default=0)
    same = all(torch.equal(_bits(got[name][:count]), _bits(value[:count])) for name, value in known.items())
    return count if same else 0


def _join(known: Mapping[str, torch.Tensor], left: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put the outputs of further calls behind those that are known."""
    import torch

    return {name: torch.cat([_bits(known[name]), _bits(value)]).view(value.dtype) for name, value in left.items()}


def _count_bytes(outputs: Mapping[str, torch.Tensor]) -> int:
    return sum(value.nbytes for value in outputs.values())


def _bits(values: torch.Tensor) -> torch.Tensor:
    import torch

    return values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize])


def _read_times(answer: Mapping[str, Any], name: str, count: int) -> list[float]:
    """Take as many times as there were calls.

    Raises:
        RefusedError: there are others.
    """
    times = _numbers(answer.get(name))
    if len(times) != count:
        raise RefusedError(EvaluationStatus.RUNTIME_ERROR, "it did not say how long each call took", rule="crash")
    return times


def _numbers(value: Any) -> list[float]:
    """Take a list of finite numbers from a process that is not trusted."""
    if not isinstance(value, list):
        return []
    numbers = [float(each) for each in value if isinstance(each, (int, float)) and not isinstance(each, bool)]
    return [each for each in numbers if math.isfinite(each) and each >= 0]
