"""Timing the Solutions of one Workload: in rounds, until the figures are sure, and anew where they are unbelievable."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fib_tools.evaluate.engines.items import Limits, Task
from fib_tools.evaluate.judge.device import Device
from fib_tools.evaluate.judge.measurement import count_missing, find_fault, find_together, has_enough
from fib_tools.evaluate.judge.outputs import Outputs
from fib_tools.evaluate.judge.refusal import Refusal, RefusedError, blame_reference
from fib_tools.evaluate.judge.runner import Runner, read_numbers
from fib_tools.evaluate.judge.scene import Batch, Scene, call, derive_seed
from fib_tools.evaluate.judge.stopwatch import time_loops
from fib_tools.evaluate.judge.trial import Trial
from fib_tools.model.solution import BASELINE
from fib_tools.model.trace import EvaluationStatus

__all__ = ["MOST_ROUNDS", "Rounds"]

MOST_ROUNDS = 6
_FEWEST_ROUNDS = 2
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
_GRAPH_SHARE = 8
"""Inputs of a graph's calls take at most this part of the free memory."""
_LIBRARY_KERNELS = ("flashinfer", "deep_gemm", "sgl_kernel", "vllm")


class Rounds:
    """Takes the times of a Solution in its turn, and compares the outputs of every call that it times."""

    def __init__(  # noqa: PLR0913  # all that a time rests on
        self,
        device: Device,
        task: Task,
        scene: Scene,
        outputs: Outputs,
        *,
        master: int,
        limits: Limits,
        settle: Callable[[], None],
    ) -> None:
        """`master` is the seed that all others come from; `settle` waits for what else begins on the device."""
        self._device, self._task, self._scene, self._outputs = device, task, scene, outputs
        self._master, self._limits, self._settle = master, limits, settle
        self._seconds = limits.evaluation_seconds
        self._is_cpu = device.kind == "cpu"
        self._fitting: dict[int, bool] = {}
        """Whether so many sets of inputs fit, as it was found first: what is compared has to be timed alike."""
        self._is_apart = False
        """Each call of a graph has a flush of its own, however small it is."""

    def choose(self, trials: Iterable[Trial], number: int) -> list[Trial]:
        """List who is timed in a round: forth and back, so that no Solution always comes first."""
        least = 1 if self._is_cpu else _FEWEST_ROUNDS
        waiting = [
            trial
            for trial in trials
            if not trial.is_over and not (number >= least and has_enough(trial, is_cpu=self._is_cpu))
        ]
        return waiting[::-1] if number % 2 else waiting

    def time(self, trial: Trial, runner: Runner) -> None:
        """Give a Solution one round.

        Raises:
            RefusedError: an output is wrong, or a rule was broken.
        """
        self._time(trial, runner, self._scene.timed)

    def _time(self, trial: Trial, runner: Runner, batch: Batch) -> None:
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
        if sets not in self._fitting:
            self._fitting[sets] = self._task.input_bytes * sets <= self._device.free_bytes // _GRAPH_SHARE
        return self._fitting[sets]

    def _capture(self, trial: Trial, runner: Runner) -> bool:
        """Have a graph made on contents that are not timed."""
        batch = self._scene.timed
        seeds = [derive_seed(self._master, self._task.workload.uuid, "capture", slot) for slot in batch.slots]
        answer = runner.ask(
            {
                "do": "capture",
                "name": batch.staging.name,
                "seeds": seeds,
                "slots": batch.slots,
                "groups": not self._is_apart,
            },
            self._seconds,
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
        poison = self._outputs.poison()
        answer = runner.ask({"do": "replay", "seeds": seeds, "times": times}, self._seconds)
        milliseconds = _read_times(answer, "milliseconds", times)
        self._outputs.compare_timed(trial, batch, poison=poison)
        return milliseconds

    def _time_eager(self, trial: Trial, runner: Runner, batch: Batch) -> list[float]:
        poison = self._outputs.poison()
        answer = runner.ask(batch.measure(), self._seconds)
        milliseconds = _read_times(answer, "milliseconds", len(batch.slots))
        trial.host += _read_times(answer, "host_microseconds", len(batch.slots))
        trial.busy += read_numbers(answer.get("busy_milliseconds"))
        kernels = answer.get("kernels")
        trial.kernels = [str(name) for name in kernels] if isinstance(kernels, list) else []
        _check_kernels(trial)
        self._outputs.compare_timed(trial, batch, poison=poison)
        return milliseconds

    def finish(self, trial: Trial, runner: Runner, reference: Runner) -> None:
        """Refuse times that stay unbelievable when they are taken again.

        Raises:
            RefusedError: they do.
            ReferenceFailedError: the reference cannot say what is right on new contents.
        """
        if self._is_apart and self._has_groups(trial):
            self._time_anew(trial, runner, reference, _DOUBTS)
        fault = self._find_fault(trial, runner)
        for number in range(_DOUBTS):
            if fault is not None:
                self._is_apart |= self._has_groups(trial) and find_together(trial) is not None
                self._time_anew(trial, runner, reference, number)
                fault = self._find_fault(trial, runner)
        if self._task.is_large:
            runner.rest(self._seconds)
        if fault is not None:
            raise RefusedError(fault.status, fault.detail, rule=fault.rule)

    def list_unequal(self, trials: Iterable[Trial]) -> list[Trial]:
        """List those with fewer flushes than others have got meanwhile, since several calls followed one."""
        return [trial for trial in trials if self._is_apart and self._has_groups(trial)]

    def _has_groups(self, trial: Trial) -> bool:
        return bool(trial.is_captured) and trial.flushes < len(self._scene.timed.slots)

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

    def _time_anew(self, trial: Trial, runner: Runner, reference: Runner, number: int) -> None:
        """Throw the times away, and make the calls on contents that are new again.

        Small calls that follow one flush find their kernel's own code in the L2, and a call alone does not: half of the 40 us
        of FlashInfer's FP8 MLA. Where that is in doubt, each call of every Solution gets a flush of its own.
        """
        batch = self._scene.timed.anew(number)
        if self._is_apart and self._has_groups(trial):
            trial.is_captured = None
        runner.stop()
        self._settle()
        self._ask_reference(reference, batch)
        trial.forget_times()
        self._outputs.forget(trial)
        try:
            for _ in range(_ROUNDS_ANEW):
                self._time(trial, runner, batch)
        finally:
            self._ask_reference(reference, self._scene.timed)

    def _ask_reference(self, reference: Runner, batch: Batch) -> None:
        with blame_reference():
            reference.ask(call(batch), self._limits.build_seconds)
        reference.stop()


def _check_kernels(trial: Trial) -> None:
    """Find a library's kernels by their names, however they were called.

    Raises:
        RefusedError: a Solution that is no baseline launched one (`library-kernel`).
    """
    if trial.entrant.solution.author == BASELINE:
        return
    for name in trial.kernels:
        library = next((each for each in _LIBRARY_KERNELS if each in name), None)
        if library is not None:
            detail = f"the kernel {name[:120]} is {library}'s own"
            raise RefusedError(EvaluationStatus.RUNTIME_ERROR, detail, rule="library-kernel")


def _read_times(answer: Mapping[str, Any], name: str, count: int) -> list[float]:
    """Take as many times as there were calls.

    Raises:
        RefusedError: there are others.
    """
    times = read_numbers(answer.get(name))
    if len(times) != count:
        raise RefusedError(EvaluationStatus.RUNTIME_ERROR, "it did not say how long each call took", rule="crash")
    return times
