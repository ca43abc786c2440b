"""Drafts from the Messages API: one request for each question, all of a generation at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from fib_tools.draft.run_folder import RunFolder
from fib_tools.errors import FibError
from fib_tools.llm.blocks import format_system_blocks
from fib_tools.llm.budget import afford_output
from fib_tools.llm.prices import Usage
from fib_tools.llm.reply import Reply
from fib_tools.llm.service import Service
from fib_tools.llm.transcript import text_block

if TYPE_CHECKING:
    from anthropic import Anthropic

__all__ = ["AnthropicDrafter"]

_AT_ONCE = 8


class AnthropicDrafter:
    """Asks a model; the contract and the brief come first, so that the service's cache serves them after the first draft."""

    def __init__(
        self,
        client: Anthropic,
        system: Sequence[str],
        *,
        tell: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._system = format_system_blocks(system)
        self._tell = tell
        self._sleep = sleep
        self._lock = threading.Lock()

    def draft(self, questions: Sequence[str], folder: RunFolder, usd: float) -> Iterator[tuple[int, Reply]]:
        """Answer the questions, each for its part of the money; what one of them fails with comes after all answers.

        Raises:
            BudgetSpentError: a part does not pay for a useful answer.
            SourceError: the service stayed busy or unreachable; the run can be resumed.
            RequestError: it refuses the key, the model or the request.
        """

        def discard(tokens: Usage) -> None:
            with self._lock:
                folder.discard(tokens)

        service = Service(
            client=self._client,
            sleep=self._sleep,
            tell=self._tell,
            discard=discard,
            resume_hint=f"try again later with: fib optimize --resume {folder.plan.run}",
        )
        bodies = [self._make_body(question, folder, usd / len(questions)) for question in questions]

        def ask(body: dict[str, Any]) -> Reply:
            return service.ask(lambda: body)

        # the first alone: it writes the cache that the others read
        yield 0, ask(bodies[0])
        failure: FibError | None = None
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            waiting = {pool.submit(ask, body): at for at, body in enumerate(bodies) if at}
            for done in as_completed(waiting):
                try:
                    yield waiting[done], done.result()
                except FibError as error:
                    failure = error
        if failure is not None:
            raise failure

    def _make_body(self, question: str, folder: RunFolder, usd: float) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": folder.plan.model,
            "max_tokens": folder.plan.max_tokens,
            "system": self._system,
            "messages": [{"role": "user", "content": [text_block(question)]}],
        }
        return {**body, "max_tokens": afford_output(body, folder.plan.price, usd=usd)}
