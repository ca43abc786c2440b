"""Drafts from a model: one request for each question, all of a generation at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

from fib_tools.draft.run_folder import RunFolder
from fib_tools.errors import FibError
from fib_tools.llm.budget import BudgetSpentError
from fib_tools.llm.reply import Reply

__all__ = ["ModelDrafter", "Provider"]

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

    def draft(self, questions: Sequence[str], folder: RunFolder, usd: float) -> Iterator[tuple[int, Reply]]:
        """Answer the questions, each for its part of the money; what one of them fails with comes after all answers.

        Raises:
            BudgetSpentError: a part does not pay for a useful answer.
            FibError: as the provider does.
        """
        part = usd / len(questions)
        # the first alone: it writes the cache that the others read
        yield 0, self._provider.ask(questions[0], folder, part)
        failure: Exception | None = None
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            waiting = {
                pool.submit(self._provider.ask, question, folder, part): at
                for at, question in enumerate(questions)
                if at
            }
            for done in as_completed(waiting):
                error = done.exception()
                if error is None:
                    yield waiting[done], done.result()
                elif isinstance(error, (FibError, BudgetSpentError)):
                    failure = error
                else:
                    raise error
        if failure is not None:
            raise failure
