"""From drafts to verdicts: what says the same as before is not run again, the rest is evaluated together, and all is kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from fib_tools.draft.attempt import REPEATS, Attempt, Draft, find_best, sum_up
from fib_tools.draft.brief import write_interface
from fib_tools.draft.digest import digest_source
from fib_tools.draft.machine import blames_machine
from fib_tools.draft.memory import Memory
from fib_tools.draft.run_folder import RunFolder
from fib_tools.draft.solution import make_solution
from fib_tools.draft.target import Target
from fib_tools.errors import FormatError, RequestError
from fib_tools.model.evidence import Evidence
from fib_tools.model.solution import Solution
from fib_tools.model.trace import EvaluationStatus

__all__ = ["Evaluate", "Inspect", "Judging"]

_OF_THE_MOMENT = frozenset({"crash", "drift"})
"""Rules that another moment or machine may not find broken."""
_INTERFACE = re.compile(
    r"RequestError: (main\.\w+(?: has no function 'run'|::run is .* is called with [^:]*)).*", re.DOTALL
)
"""What the builder says of a function that cannot be called, and the field of a Solution by which that is told."""

Evaluate = Callable[[Sequence[Solution]], Mapping[str, Sequence[Evidence]]]
"""Evaluates Solutions on all Workloads, and gives what it found by the Solution's hash."""

Inspect = Callable[[Sequence[Attempt], Sequence[Sequence[Evidence]], Attempt | None], Sequence[Attempt]]
"""Adds to attempts, each with its evidence, what helps their author and changes no verdict; the last is the best of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judging:
    """The verdicts of one run."""

    folder: RunFolder
    workloads: Collection[str]
    """Those that count now."""
    untried: int
    """How many more the Definition has."""
    time_limit: float
    evaluate: Evaluate
    inspect: Inspect
    memory: Memory
    tell: Callable[[str], None]

    def judge(self, drafts: Sequence[Draft]) -> None:
        """Evaluate what can be evaluated, all together, and keep a verdict on each draft."""
        known = {attempt.digest: attempt.number for attempt in self.folder.attempts if self._stands(attempt)}
        made: list[Attempt] = []
        for draft in drafts:
            attempt = self._prepare(draft, known)
            if attempt.solution is not None:
                known[attempt.digest] = attempt.number
            made.append(attempt)
        solutions = [attempt.solution for attempt in made if attempt.solution is not None]
        if solutions:
            self.tell(f"evaluating {', '.join(f'{attempt.number}. {attempt.technique}' for attempt in made)}")
        found = self.evaluate(solutions) if solutions else {}
        evidence = [found.get(attempt.solution.hash, ()) if attempt.solution else () for attempt in made]
        judged = [self._sum_up(*each) for each in zip(made, evidence, strict=True)]
        best = find_best([*self.folder.attempts, *judged], self.workloads)
        for attempt, seen in zip(self.inspect(judged, evidence, best), evidence, strict=True):
            self._keep(attempt, seen)

    def _stands(self, attempt: Attempt) -> bool:
        """Tell whether the same source would be judged the same now: on these Workloads, in this time, by a machine that can."""
        results = attempt.narrow(self.workloads).results
        return bool(results) and not any(
            result.rule in _OF_THE_MOMENT
            or (result.rule == "timeout" and attempt.time_limit < self.time_limit)
            or blames_machine(result.detail)
            for result in results
            if result.status is not EvaluationStatus.PASSED
        )

    def _prepare(self, draft: Draft, known: Mapping[str, int]) -> Attempt:
        plan = self.folder.plan
        digest = digest_source(draft.source, plan.target.language)
        attempt = Attempt(
            number=draft.number,
            ask=draft.ask,
            technique=draft.technique,
            why=draft.why,
            digest=digest,
            problem=draft.problem,
        )
        if draft.problem:
            return attempt
        if digest in known:
            return attempt.model_copy(update={"problem": f"{REPEATS} {known[digest]}"})
        try:
            return attempt.model_copy(update={"solution": make_solution(draft, plan)})
        except (FormatError, RequestError) as error:
            return attempt.model_copy(update={"problem": str(error)})

    def _sum_up(self, attempt: Attempt, evidence: Sequence[Evidence]) -> Attempt:
        target = self.folder.plan.target
        found = sum_up(evidence, target.baseline_ms, target.weights)
        results = tuple(each.model_copy(update={"detail": _reword(each.detail, target)}) for each in found)
        about = {"results": results, "untried": self.untried, "time_limit": self.time_limit}
        judged = attempt.model_copy(update=about)
        if attempt.solution is not None and not results:
            judged = judged.model_copy(update={"problem": "the evaluator could not evaluate it"})
        return judged

    def _keep(self, judged: Attempt, evidence: Sequence[Evidence]) -> None:
        self.memory.note(judged, self.folder.plan.run)
        self.folder.keep_attempt(judged, evidence)
        wrong = judged.first_wrong
        said = (
            f"{judged.score:.3f} x"
            if judged.passed
            else (wrong.rule or wrong.status.value)
            if wrong
            else judged.problem
        )
        self.tell(f"{judged.number}. {judged.technique}: {said}")


def _reword(detail: str, target: Target) -> str:
    """Say what is wrong with a draft's function in the words of its contract: its author sees no field of a Solution."""
    found = _INTERFACE.match(detail)
    return f"{found[1]}; {write_interface(target)}" if found else detail
