"""One question as the Messages API takes it: the contract and the brief first, so that its cache serves them."""

from __future__ import annotations

from typing import Any

from fib_tools.draft.brief import write_brief, write_contract
from fib_tools.draft.run_folder import SearchPlan
from fib_tools.llm.blocks import format_system_blocks
from fib_tools.llm.transcript import text_block

__all__ = ["make_body", "write_system"]


def write_system(plan: SearchPlan) -> tuple[str, str]:
    """Write what comes before every question of a run."""
    return write_contract(plan.target), write_brief(plan.target)


def make_body(plan: SearchPlan, question: str) -> dict[str, Any]:
    """Make a request."""
    return {
        "model": plan.model,
        "max_tokens": plan.max_tokens,
        "system": format_system_blocks(write_system(plan)),
        "messages": [{"role": "user", "content": [text_block(question)]}],
    }
