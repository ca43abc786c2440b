from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fib_tools.evaluate.engines.items import Limits
from fib_tools.evaluate.judge import rounds as module
from fib_tools.evaluate.judge.refusal import ReferenceFailedError, Refusal, RefusedError
from fib_tools.evaluate.judge.rounds import Rounds
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
        kind="cpu", anew=lambda _number: None, stop=lambda: None, forget_times=lambda: None, forget=lambda _trial: None
    )
    scene: Any = SimpleNamespace(timed=anything)
    reference: Any = Reference(answers)
    rounds = Rounds(anything, anything, scene, anything, master=1, limits=Limits())
    with pytest.raises(wanted):
        rounds.finish(anything, anything, reference)
