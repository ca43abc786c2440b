"""What is sent to the Messages API, with marks up to which the service may keep it in its cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fib_tools.llm.transcript import Message, text_block
from fib_tools.model.base import to_document

__all__ = ["format_messages", "format_system_blocks", "format_tools"]

_CACHE = {"cache_control": {"type": "ephemeral"}}


def format_tools(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mark the end of the tools for the cache."""
    return [*tools[:-1], {**tools[-1], **_CACHE}]


def format_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Write the conversation, marked for the cache at the newest two messages of the user.

    The older mark finds what the last turn stored even if this turn brought more blocks than the service looks back.
    """
    plain = [{"role": message.role, "content": to_document(message.content)} for message in messages]
    marked = [index for index, message in enumerate(messages) if message.role == "user"][-2:]
    for index in marked:
        content = plain[index]["content"]
        content[-1] = {**content[-1], **_CACHE}
    return plain


def format_system_blocks(system: Sequence[str]) -> list[dict[str, Any]]:
    """Turn the parts of the system prompt into blocks, the last one marked for the cache."""
    blocks = [text_block(text) for text in system]
    return [*blocks[:-1], {**blocks[-1], **_CACHE}]
