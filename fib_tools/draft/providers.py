"""Services that draft: the Messages API, and whatever speaks OpenAI's chat completions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fib_tools.draft.batch_drafter import BatchDrafter
from fib_tools.draft.drafter import ModelDrafter
from fib_tools.draft.question import make_body, write_system
from fib_tools.draft.run_folder import RunFolder
from fib_tools.draft.search import Drafter
from fib_tools.llm.budget import afford_output
from fib_tools.llm.chat import ask_chat, open_chat_client
from fib_tools.llm.reply import Reply
from fib_tools.llm.service import Service, open_client

if TYPE_CHECKING:
    from anthropic import Anthropic
    from openai import OpenAI

__all__ = ["open_drafter"]

_PURPOSE = "fib optimize"


@contextmanager
def open_drafter(name: str, *, is_batch: bool, tell: Callable[[str], None], place: str) -> Iterator[Drafter]:
    """Open `anthropic`, whose drafts may come in batches, or `openai`; `place` are the options that name the workspace.

    Raises:
        MissingDependencyError: its SDK is not installed.
        RequestError: there is no key.
    """
    if name == "openai":
        with open_chat_client(_PURPOSE) as chat:
            yield ModelDrafter(_Chat(chat))
    else:
        with open_client(_PURPOSE) as client:
            yield (
                BatchDrafter(client, tell=tell) if is_batch else ModelDrafter(_Messages(client, tell=tell, place=place))
            )


class _Messages:
    """The Messages API."""

    def __init__(self, client: Anthropic, *, tell: Callable[[str], None], place: str) -> None:
        self._client = client
        self._place = place
        self._tell = tell

    def ask(self, question: str, folder: RunFolder, usd: float) -> Reply:
        plan = folder.plan
        service = Service(
            client=self._client,
            sleep=time.sleep,
            tell=self._tell,
            show=lambda _: self._tell("the model writes"),
            discard=folder.discard,
            resume_hint=f"try again later with: fib optimize {plan.target.definition.name} --resume {plan.run}{self._place}",
        )
        body = make_body(plan, question)
        allowed = afford_output(body, plan.price, usd=usd)
        return service.ask(lambda: {**body, "max_tokens": allowed})


class _Chat:
    """Chat completions."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def ask(self, question: str, folder: RunFolder, usd: float) -> Reply:
        plan = folder.plan
        body: dict[str, Any] = {
            "model": plan.model,
            "max_tokens": plan.max_tokens,
            "messages": [
                {"role": "system", "content": "\n\n".join(write_system(plan))},
                {"role": "user", "content": question},
            ],
        }
        return ask_chat(self._client, {**body, "max_tokens": afford_output(body, plan.price, usd=usd)})
