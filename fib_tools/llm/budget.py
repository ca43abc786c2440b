"""How much the next turn may cost at most."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fib_tools.llm.ledger import Ledger
from fib_tools.llm.prices import Price
from fib_tools.llm.transcript import Transcript
from fib_tools.model.base import to_document

__all__ = ["BudgetSpentError", "afford_output", "cap_output"]

_BYTES_PER_TOKEN = 2
"""Text has three to four bytes a token, dense JSON between two and three; the fewest keeps the estimate above the truth."""

_LEAST_OUTPUT = 1024
"""With fewer tokens a model cannot finish a thought and a tool call, so that the turn would be wasted."""


class BudgetSpentError(Exception):
    """What is left does not pay for another turn; the run stops, which is no error."""


def cap_output(body: Mapping[str, Any], *, transcript: Transcript, ledger: Ledger, max_usd: float) -> int:
    """Compute the output that the next turn may have, so that even its worst case stays within the budget.

    Raises:
        BudgetSpentError: too little is left for a useful turn.
    """
    prompt = _estimate_prompt(body, transcript, ledger)
    return _cap(int(body["max_tokens"]), ledger.price, prompt=prompt, usd=max_usd - ledger.usd)


def afford_output(body: Mapping[str, Any], price: Price, *, usd: float) -> int:
    """Compute the output that a request without a history may have for so much money, all of its prompt new.

    Raises:
        BudgetSpentError: too little is left for a useful answer.
    """
    return _cap(int(body["max_tokens"]), price, prompt=_tokens_at_most({**body, "max_tokens": 0}), usd=usd)


def _cap(asked: int, price: Price, *, prompt: int, usd: float) -> int:
    affordable = price.afford_output(usd, prompt=prompt)
    if affordable < min(asked, _LEAST_OUTPUT):
        raise BudgetSpentError
    return min(asked, affordable)


def _estimate_prompt(body: Mapping[str, Any], transcript: Transcript, ledger: Ledger) -> int:
    """Take what the last turn used and add what came since; without a last turn, all of the request is new."""
    used = ledger.find_usage(transcript.turns)
    if used is None:
        return _tokens_at_most({**body, "max_tokens": 0})
    newest = max(index for index, message in enumerate(transcript.messages) if message.role == "assistant")
    added = [to_document(message.content) for message in transcript.messages[newest + 1 :]]
    return used.prompt + used.output + _tokens_at_most(added)


def _tokens_at_most(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode()) // _BYTES_PER_TOKEN
