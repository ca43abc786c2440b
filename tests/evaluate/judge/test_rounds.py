from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fib_tools.evaluate.engines.items import Limits
from fib_tools.evaluate.judge import rounds as module
from fib_tools.evaluate.judge.refusal import ReferenceFailedError, Refusal, RefusedError
from fib_tools.evaluate.judge.rounds import Rounds
from fib_tools.evaluate.judge.trial import Trial
from fib_tools.model.evidence import Clocks
from fib_tools.model.trace import EvaluationStatus

WRONG = RefusedError(EvaluationStatus.INCORRECT_NUMERICAL, "the Solution is wrong")


class Reference:
    """Answers so many times, then fails."""

    def __init__(self, answers: int) -> None:
        self.answers = answers

    def ask(self, _message: Any, _seconds: float) -> None:
        if not self.answers:
            raise RefusedError(EvaluationStatus.RUNTIME_ERROR, "no memory is left")
        self.answers -= 1

    def stop(self) -> None:
        pass


@pytest.mark.parametrize(
    ("answers", "wanted"), [(0, ReferenceFailedError), (1, ReferenceFailedError), (2, RefusedError)]
)
def test_a_reference_that_fails_while_times_are_taken_again_is_not_held_against_the_solution(
    monkeypatch: pytest.MonkeyPatch, answers: int, wanted: type[Exception]
) -> None:
    def refuse(*_: Any) -> None:
        raise WRONG

    monkeypatch.setattr(Rounds, "_find_fault", lambda *_: Refusal(status=EvaluationStatus.RUNTIME_ERROR, detail="odd"))
    monkeypatch.setattr(Rounds, "_time", refuse)
    monkeypatch.setattr(module, "call", lambda batch: batch)
    anything: Any = SimpleNamespace(
        kind="cpu",
        is_captured=False,
        anew=lambda _number: None,
        stop=lambda: None,
        forget_times=lambda: None,
        forget=lambda _trial: None,
    )
    scene: Any = SimpleNamespace(timed=anything)
    reference: Any = Reference(answers)
    settled: list[str] = []
    rounds = Rounds(
        anything, anything, scene, anything, master=1, limits=Limits(), settle=lambda: settled.append("once")
    )
    with pytest.raises(wanted):
        rounds.finish(anything, anything, reference)
    assert settled, "times were taken again beside others that begin"


class Runner:
    """Captures calls in groups of four, unless it is told not to; notes what it was asked for."""

    def __init__(self) -> None:
        self.groups: list[bool] = []

    def ask(self, message: Any, _seconds: float) -> Any:
        if message["do"] == "capture":
            self.groups.append(message["groups"])
            return {"captured": True, "flushes": 3 if message["groups"] else 12}
        return {}

    def stop(self) -> None:
        pass


def make_gpu() -> Any:
    return SimpleNamespace(kind="cuda", clocks=lambda *_: Clocks(), free_bytes=1 << 40)


def make_rounds(gpu: Any) -> Rounds:
    slots = list(range(12))
    batch: Any = SimpleNamespace(slots=slots, seeds=slots, staging=SimpleNamespace(name="timed"), part=lambda *_: batch)
    batch.anew = lambda _number: batch
    scene: Any = SimpleNamespace(timed=batch, typical=None)
    task: Any = SimpleNamespace(input_bytes=1, is_large=False, workload=SimpleNamespace(uuid="w"))
    outputs: Any = SimpleNamespace(forget=lambda _trial: None)
    return Rounds(gpu, task, scene, outputs, master=1, limits=Limits(), settle=lambda: None)


def test_all_solutions_are_timed_alike_also_where_memory_becomes_scarce_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Rounds, "_replay", lambda *_: None)
    monkeypatch.setattr(Rounds, "_time_eager", lambda *_: [1.0])
    gpu, entrant = make_gpu(), cast("Any", SimpleNamespace())
    rounds, trials = make_rounds(gpu), [Trial(entrant=entrant), Trial(entrant=entrant)]
    for trial in trials:
        rounds.time(trial, Runner())  # type: ignore[arg-type]
        gpu.free_bytes = 0
    assert [trial.is_captured for trial in trials] == [True, True]


def test_calls_that_are_faster_behind_one_flush_get_one_each_and_so_do_those_of_all_other_solutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = 0.040  # of each call of both Solutions, in milliseconds; in groups the second one's take half as long

    def replay(_rounds: Rounds, trial: Trial, runner: Any, _batch: Any) -> None:
        figure = 0.020 if runner is second and runner.groups[-1] else alone
        trial.fresh, trial.again, trial.busy = [figure], [figure] * 40, [alone] * 8

    monkeypatch.setattr(Rounds, "_replay", replay)
    monkeypatch.setattr(Rounds, "_time_eager", lambda *_: [alone] * 8)
    monkeypatch.setattr(module, "time_loops", lambda *_, **__: [])
    monkeypatch.setattr(module, "call", lambda batch: batch)
    first, second, reference = Runner(), Runner(), Reference(answers=100)
    entrant: Any = SimpleNamespace()
    trials = [Trial(entrant=entrant), Trial(entrant=entrant)]
    rounds = make_rounds(make_gpu())
    for trial, runner in zip(trials, (first, second), strict=True):
        rounds.time(trial, runner)  # type: ignore[arg-type]
    for trial, runner in zip(trials, (first, second), strict=True):
        rounds.finish(trial, runner, reference)  # type: ignore[arg-type]
    assert (first.groups, second.groups) == ([True], [True, False])
    assert rounds.list_unequal(trials) == [trials[0]]
    rounds.finish(trials[0], first, reference)  # type: ignore[arg-type]
    assert first.groups == [True, False]
    assert not rounds.list_unequal(trials)
    assert [set(trial.cold) for trial in trials] == [{alone}, {alone}]
