"""Drafts from a model: one request for each question, all of a generation at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from fib_tools.draft.run_folder import RunFolder
from fib_tools.errors import FibError
from fib_tools.llm.budget import BudgetSpentError
from fib_tools.llm.reply import Reply

__all__ = ["Answers", "ModelDrafter", "Provider"]

Answers = list[tuple[int, Reply]]
"""Answers that came together, each with the place of its question."""
_AT_ONCE = 8


class Provider(Protocol):
    """A service that answers; asked from several threads."""

    def ask(self, question: str, folder: RunFolder, usd: float) -> Reply:
        """Answer one question for so much money at most.

        Raises:
            BudgetSpentError: it does not pay for a useful answer.
            SourceError: the service stayed busy or unreachable; the run can be resumed.
            RequestError: it refuses the key, the model or the request.
        """


class ModelDrafter:
    """Asks a model."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def draft(self, questions: Sequence[str], folder: RunFolder, usd: float) -> Iterator[Answers]:
        """Answer the questions, each for its part of the money; what one of them fails with comes after all answers.

        Raises:
            BudgetSpentError: a part does not pay for a useful answer.
            FibError: as the provider does.
        """
        part = usd / len(questions)
        # the first alone: it writes the cache that the others read
        first = self._provider.ask(questions[0], folder, part)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            places = {
                pool.submit(self._provider.ask, question, folder, part): place
                for place, question in enumerate(questions)
                if place
            }
            yield [(0, first)]
            yield from _gather(places)


def _gather(places: dict[Future[Reply], int]) -> Iterator[Answers]:
    """Give the answers as they come, those that have come meanwhile together, and raise what one failed with at the end."""
    failure: Exception | None = None
    while places:
        answers: Answers = []
        for done in wait(places, return_when=FIRST_COMPLETED).done:
            place, error = places.pop(done), done.exception()
            if error is None:
                answers.append((place, done.result()))
            elif isinstance(error, (FibError, BudgetSpentError)):
                failure = error
            else:
                raise error
        yield sorted(answers, key=lambda answer: answer[0])
    if failure is not None:
        raise failure
