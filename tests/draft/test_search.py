from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fib_tools.draft.attempt import Ask, AskKind, Draft
from fib_tools.draft.drafter import Answers, ModelDrafter
from fib_tools.draft.judging import Judging
from fib_tools.draft.run_folder import RunFolder
from fib_tools.draft.search import Ending, Limits, Search
from fib_tools.llm.prices import Usage
from fib_tools.llm.reply import Reply
from fib_tools.llm.transcript import Message, text_block

said: list[str] = []


def reply(text: str) -> Reply:
    message = Message(role="assistant", content=[text_block(f"```python\n{text}\n```")])
    return Reply(message=message, usage=Usage(input=1, output=1))


class Folder:
    """What a search needs of a run's folder."""

    def __init__(self) -> None:
        self.plan = SimpleNamespace(run="r")
        self.ledger = SimpleNamespace(usd=0.0)
        self.drafts: list[Draft] = []
        self.attempts: list[Any] = []

    @property
    def waiting(self) -> list[Draft]:
        return self.drafts[len(self.attempts) :]

    def charge(self, draft: Draft) -> None:
        pass

    def keep_draft(self, draft: Draft) -> None:
        said.append(f"keep {draft.number}")
        self.drafts.append(draft)


class Judge:
    """Finds every draft wrong; the first one may end the search."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.folder = Folder()
        self.memory = SimpleNamespace(recall=lambda **_: ())
        self._breaks = breaks

    def tell(self, _text: str) -> None:
        pass

    def judge(self, drafts: Sequence[Draft]) -> None:
        if drafts:
            said.append("judge " + " ".join(str(draft.number) for draft in drafts))
            if self._breaks:
                raise KeyboardInterrupt
        for draft in drafts:
            self.folder.attempts.append(SimpleNamespace(number=draft.number, results=("wrong",), passed=False))


class Three:
    """Asks for three at once."""

    def propose(self, _attempts: Sequence[Any]) -> list[Ask]:
        return [Ask(kind=AskKind.FIRST)] * 3


class InTwoGoes:
    """Has one answer at first, and two later."""

    def draft(self, _questions: Sequence[str], _folder: RunFolder, _usd: float) -> Iterator[Answers]:
        yield [(0, reply("x = 0"))]
        said.append("more")
        yield [(1, reply("x = 1")), (2, reply("x = 2"))]


def search(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> Ending:
    monkeypatch.setattr("fib_tools.draft.search.write_question", lambda *_: "?")
    said.clear()
    made = Search(Three(), drafter=InTwoGoes(), judging=cast("Judging", judge))
    return made.run(Limits(evaluations=3, usd=1.0))


def test_answers_are_judged_while_the_model_is_at_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert search(Judge(), monkeypatch) is Ending.EVALUATIONS
    assert said == ["keep 0", "judge 0", "more", "keep 1", "keep 2", "judge 1 2"]


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ([AskKind.FIRST], "1 first draft"),
        ([AskKind.IMPROVE, AskKind.REPAIR, AskKind.IMPROVE], "2 improvements, 1 repair"),
    ],
)
def test_a_search_says_what_it_asks_for(monkeypatch: pytest.MonkeyPatch, kinds: list[AskKind], said: str) -> None:
    told: list[str] = []
    judge = Judge()
    monkeypatch.setattr(judge, "tell", told.append)
    monkeypatch.setattr("fib_tools.draft.search.write_question", lambda *_: "?")
    strategy = SimpleNamespace(propose=lambda _: [Ask(kind=kind) for kind in kinds])
    drafter = SimpleNamespace(draft=lambda *_: iter([[(place, reply("x = 0")) for place in range(len(kinds))]]))
    Search(strategy, drafter=drafter, judging=cast("Judging", judge)).run(Limits(evaluations=len(kinds), usd=1.0))
    assert told == [f"asking for {said}"]


def test_answers_under_way_are_kept_when_a_search_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert search(Judge(breaks=True), monkeypatch) is Ending.INTERRUPTED
    assert said == ["keep 0", "judge 0", "more", "keep 1", "keep 2"]


def test_the_first_question_is_asked_alone_and_the_others_while_its_answer_is_judged() -> None:
    others, first_is_done = threading.Barrier(3), threading.Event()

    class Provider:
        def ask(self, question: str, _folder: RunFolder, _usd: float) -> Reply:
            if question == "a":
                first_is_done.set()
            else:
                assert first_is_done.is_set()
                others.wait(10)
            return reply(question)

    coming = ModelDrafter(Provider()).draft("abc", cast("RunFolder", None), 1.0)
    assert [place for place, _ in next(coming)] == [0]
    others.wait(10)  # both are asked, and nobody has asked for their answers
    assert sorted(place for answers in coming for place, _ in answers) == [1, 2]
