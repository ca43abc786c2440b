"""The search: ask, keep, evaluate, keep, ask again. Drafts are free, the verdict is the evaluator's.

What happens next follows from the run's folder alone, so that a kill loses one answer at most, and nothing that was paid
for and received.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from fib_tools.draft.attempt import Ask, Attempt, Draft, find_best, sum_up
from fib_tools.draft.digest import digest_source
from fib_tools.draft.extract import extract_source, extract_technique
from fib_tools.draft.memory import Memory
from fib_tools.draft.prompt import write_question
from fib_tools.draft.run_folder import RunFolder
from fib_tools.draft.solution import make_solution
from fib_tools.draft.strategies import Strategy
from fib_tools.errors import FormatError
from fib_tools.llm.budget import BudgetSpentError
from fib_tools.llm.reply import Reply
from fib_tools.model.evidence import Evidence
from fib_tools.model.solution import Solution

__all__ = ["Drafter", "Ending", "Evaluate", "Limits", "Search"]

_FRUITLESS = 5
"""Drafts in a row that could not be evaluated: the model has nothing more to say."""


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

    def draft(self, questions: Sequence[str], folder: RunFolder, usd: float) -> Iterable[tuple[int, Reply]]:
        """Answer questions for so much money together; answers come with the question's place, in any order.

        Raises:
            BudgetSpentError: it does not pay for them.
        """


Evaluate = Callable[[Sequence[Solution]], Mapping[str, Sequence[Evidence]]]
"""Evaluates Solutions on all Workloads, and gives what it found by the Solution's hash."""


class Search:
    """One run."""

    def __init__(
        self,
        folder: RunFolder,
        strategy: Strategy,
        *,
        drafter: Drafter,
        evaluate: Evaluate,
        memory: Memory,
        tell: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._strategy = strategy
        self._drafter = drafter
        self._evaluate = evaluate
        self._memory = memory
        self._tell = tell

    def run(self, limits: Limits) -> Ending:
        """Search until something says to stop."""
        try:
            while True:
                self._judge(self._folder.waiting)
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
        failures = self._memory.recall(besides=run)
        questions = [write_question(ask, attempts, failures) for ask in asks]
        self._tell(f"asking for {_count(asks)}")
        left = limits.usd - self._folder.ledger.usd
        for place, reply in self._drafter.draft(questions, self._folder, left):
            self._keep(asks[place], reply)

    def _keep(self, ask: Ask, reply: Reply) -> None:
        number = len(self._folder.drafts)
        usd = self._folder.plan.price.cost(reply.usage)
        text = reply.message.text
        draft = Draft(number=number, ask=ask, technique=extract_technique(text), tokens=reply.usage, usd=usd)
        self._folder.charge(draft)
        try:
            draft = draft.model_copy(update={"source": extract_source(text)})
        except FormatError as error:
            draft = draft.model_copy(update={"problem": str(error)})
        self._folder.keep_draft(draft)

    def _judge(self, drafts: Sequence[Draft]) -> None:
        """Evaluate what can be evaluated, all together, and keep a verdict on each draft."""
        known = {attempt.digest: attempt.number for attempt in self._folder.attempts if attempt.solution}
        made: list[Attempt] = []
        for draft in drafts:
            attempt = self._prepare(draft, known)
            if attempt.solution is not None:
                known[attempt.digest] = attempt.number
            made.append(attempt)
        solutions = [attempt.solution for attempt in made if attempt.solution is not None]
        if solutions:
            self._tell(f"evaluating {', '.join(f'{attempt.number}. {attempt.technique}' for attempt in made)}")
        found = self._evaluate(solutions) if solutions else {}
        for attempt in made:
            self._conclude(attempt, found.get(attempt.solution.hash, ()) if attempt.solution else ())

    def _prepare(self, draft: Draft, known: Mapping[str, int]) -> Attempt:
        plan = self._folder.plan
        digest = digest_source(draft.source, plan.target.language)
        attempt = Attempt(
            number=draft.number, ask=draft.ask, technique=draft.technique, digest=digest, problem=draft.problem
        )
        if draft.problem:
            return attempt
        if digest in known:
            return attempt.model_copy(update={"problem": f"it does the same as attempt {known[digest]}"})
        try:
            return attempt.model_copy(update={"solution": make_solution(draft, plan)})
        except FormatError as error:
            return attempt.model_copy(update={"problem": str(error)})

    def _conclude(self, attempt: Attempt, evidence: Sequence[Evidence]) -> None:
        results = sum_up(evidence, self._folder.plan.target.baseline_ms)
        judged = attempt.model_copy(update={"results": results})
        if attempt.solution is not None and not results:
            judged = judged.model_copy(update={"problem": "the evaluator could not evaluate it"})
        self._memory.note(judged, self._folder.plan.run)
        self._folder.keep_attempt(judged, evidence)
        wrong = judged.first_wrong
        said = (
            f"{judged.score:.3f} x"
            if judged.passed
            else (wrong.rule or wrong.status.value)
            if wrong
            else judged.problem
        )
        self._tell(f"{judged.number}. {judged.technique}: {said}")


def _count(asks: Sequence[Ask]) -> str:
    kinds = [ask.kind.value for ask in asks]
    return ", ".join(f"{kinds.count(kind)} to {kind}" for kind in dict.fromkeys(kinds))
