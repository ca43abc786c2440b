"""The search: ask, keep, evaluate, keep, ask again. Drafts are free, the verdict is the evaluator's.

What happens next follows from the run's folder alone, so that a kill loses one answer at most, and nothing that was paid
for and received.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from fib_tools.draft.attempt import Ask, AskKind, Draft, find_best
from fib_tools.draft.drafter import Answers
from fib_tools.draft.extract import extract_source, extract_technique, extract_why
from fib_tools.draft.judging import Judging
from fib_tools.draft.prompt import write_question
from fib_tools.draft.run_folder import RunFolder
from fib_tools.draft.strategies import Strategy
from fib_tools.errors import FormatError
from fib_tools.llm.budget import BudgetSpentError
from fib_tools.llm.reply import Reply

__all__ = ["Drafter", "Ending", "Limits", "Search"]

_FRUITLESS = 5
"""Drafts in a row that could not be evaluated: the model has nothing more to say."""
_KINDS = {
    AskKind.FIRST: "first draft",
    AskKind.REPAIR: "repair",
    AskKind.IMPROVE: "improvement",
    AskKind.CROSS: "crossing",
}


class Ending(str, Enum):
    """Why a search stopped."""

    EVALUATIONS = "evaluations"
    """So many drafts as it may have."""
    BUDGET = "budget"
    """What is left does not pay for another draft."""
    LIMIT = "limit"
    """Every size is as near the device's limit as was asked for."""
    FRUITLESS = "fruitless"
    """Only drafts that could not be evaluated, several in a row."""
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Where a search stops."""

    evaluations: int
    usd: float
    percent: float = 97.0
    """Of the measured limit, on every size."""


class Drafter(Protocol):
    """Whoever answers questions."""

    def draft(self, questions: Sequence[str], folder: RunFolder, usd: float) -> Iterator[Answers]:
        """Answer questions for so much money together; answers come in any order, those that are there together.

        Raises:
            BudgetSpentError: it does not pay for them.
        """


class Search:
    """One run."""

    def __init__(
        self,
        strategy: Strategy,
        *,
        drafter: Drafter,
        judging: Judging,
    ) -> None:
        self._folder = judging.folder
        self._strategy = strategy
        self._drafter = drafter
        self._judging = judging

    def run(self, limits: Limits) -> Ending:
        """Search until something says to stop."""
        try:
            while True:
                self._judging.judge(self._folder.waiting)
                ending = self._find_ending(limits)
                if ending is not None:
                    return ending
                self._ask(limits)
        except BudgetSpentError:
            return Ending.BUDGET
        except KeyboardInterrupt:
            return Ending.INTERRUPTED

    def _find_ending(self, limits: Limits) -> Ending | None:
        attempts = self._folder.attempts
        best = find_best(attempts)
        if best is not None and all((result.percent or 0.0) >= limits.percent for result in best.results):
            return Ending.LIMIT
        if len(attempts) >= limits.evaluations:
            return Ending.EVALUATIONS
        if len(attempts) >= _FRUITLESS and not any(attempt.results for attempt in attempts[-_FRUITLESS:]):
            return Ending.FRUITLESS
        return None

    def _ask(self, limits: Limits) -> None:
        attempts, run = self._folder.attempts, self._folder.plan.run
        asks = self._strategy.propose(attempts)[: limits.evaluations - len(attempts)]
        failures = self._judging.memory.recall(besides=run)
        questions = [write_question(ask, attempts, failures) for ask in asks]
        self._judging.tell(f"asking for {_count(asks)}")
        left = limits.usd - self._folder.ledger.usd
        coming = self._drafter.draft(questions, self._folder, left)
        try:
            for answers in coming:
                self._keep_all(asks, answers)
                self._judging.judge(self._folder.waiting)  # while the model is at the others
        except BaseException:
            for answers in coming:  # what is under way is paid for
                self._keep_all(asks, answers)
            raise

    def _keep_all(self, asks: Sequence[Ask], answers: Answers) -> None:
        for place, reply in answers:
            self._keep(asks[place], reply)

    def _keep(self, ask: Ask, reply: Reply) -> None:
        number = len(self._folder.drafts)
        text = reply.message.text
        draft = Draft(
            number=number, ask=ask, technique=extract_technique(text), why=extract_why(text), tokens=reply.usage
        )
        self._folder.charge(draft)
        try:
            draft = draft.model_copy(update={"source": extract_source(text)})
        except FormatError as error:
            draft = draft.model_copy(update={"problem": str(error), "answer": text})
        self._folder.keep_draft(draft)


def _count(asks: Sequence[Ask]) -> str:
    kinds = [ask.kind for ask in asks]
    counted = [(kinds.count(kind), _KINDS[kind]) for kind in dict.fromkeys(kinds)]
    return ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counted)
