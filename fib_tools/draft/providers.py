"""Services that draft: the Messages API, and whatever speaks OpenAI's chat completions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fib_tools.draft.brief import write_brief, write_contract
from fib_tools.draft.drafter import Provider
from fib_tools.draft.run_folder import RunFolder, SearchPlan
from fib_tools.llm.blocks import format_system_blocks
from fib_tools.llm.budget import afford_output
from fib_tools.llm.chat import ask_chat, open_chat_client
from fib_tools.llm.reply import Reply
from fib_tools.llm.service import Service, open_client
from fib_tools.llm.transcript import text_block

if TYPE_CHECKING:
    from anthropic import Anthropic
    from openai import OpenAI

__all__ = ["open_provider"]

_PURPOSE = "fib optimize"


@contextmanager
def open_provider(name: str, *, tell: Callable[[str], None]) -> Iterator[Provider]:
    """Open `anthropic` or `openai`.

    Raises:
        MissingDependencyError: its SDK is not installed.
        RequestError: there is no key.
    """
    if name == "openai":
        with open_chat_client(_PURPOSE) as chat:
            yield _Chat(chat)
    else:
        with open_client(_PURPOSE) as client:
            yield _Messages(client, tell=tell)


def _write_system(plan: SearchPlan) -> tuple[str, str]:
    return write_contract(plan.target), write_brief(plan.target)


class _Messages:
    """The Messages API; the contract and the brief come first, so that its cache serves them after the first draft."""

    def __init__(self, client: Anthropic, *, tell: Callable[[str], None]) -> None:
        self._client = client
        self._tell = tell

    def ask(self, question: str, folder: RunFolder, usd: float) -> Reply:
        plan = folder.plan
        service = Service(
            client=self._client,
            sleep=time.sleep,
            tell=self._tell,
            discard=folder.discard,
            resume_hint=f"try again later with: fib optimize {plan.target.definition.name} --resume {plan.run}",
        )
        body: dict[str, Any] = {
            "model": plan.model,
            "max_tokens": plan.max_tokens,
            "system": format_system_blocks(_write_system(plan)),
            "messages": [{"role": "user", "content": [text_block(question)]}],
        }
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
                {"role": "system", "content": "\n\n".join(_write_system(plan))},
                {"role": "user", "content": question},
            ],
        }
        return ask_chat(self._client, {**body, "max_tokens": afford_output(body, plan.price, usd=usd)})
