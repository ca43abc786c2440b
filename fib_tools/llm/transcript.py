"""The conversation on disk, one message a line; a run is resumed from nothing else.

{"role": "user", "content": [{"type": "text", "text": "onboard kimi-k2"}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fib_tools.errors import FormatError
from fib_tools.host.lines import append_line, read_lines
from fib_tools.model.base import Model, read_strict, to_document
from fib_tools.model.canonical import format_line, load_json

__all__ = ["Message", "Transcript", "text_block"]

_LIMIT = 256 << 20
_FIELDS: Mapping[str, Mapping[str, type]] = {
    "text": {"text": str},
    "tool_use": {"id": str, "name": str, "input": dict},
    "tool_result": {"tool_use_id": str, "content": str},
}
"""What the loop reads of a block, by its type."""


def text_block(text: str) -> dict[str, Any]:
    """Put text into a content block."""
    return {"type": "text", "text": text}


def _check_block(block: dict[str, Any]) -> dict[str, Any]:
    """Refuse a block without the fields that this loop reads; what else it holds is the service's."""
    kind = block.get("type")
    wanted = _FIELDS.get(kind, {}) if isinstance(kind, str) else {"type": str}
    for name, expected in wanted.items():
        if not isinstance(block.get(name), expected):
            raise ValueError(  # noqa: TRY004  # pydantic takes no TypeError
                f"a block of type {kind!r} whose {name} is no {expected.__name__}"
            )
    return block


class Message(Model):
    """One message of the conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[tuple[Annotated[dict[str, Any], AfterValidator(_check_block)], ...], Field(min_length=1)]
    """Content blocks as the Messages API takes them."""
    stop_reason: str | None = None
    """Why the model stopped, in its own messages."""
    malformed: dict[str, str] = Field(default_factory=dict)
    """What is wrong with the input of a tool call, by the call's id; such a call is answered, not run."""

    @property
    def tool_calls(self) -> tuple[dict[str, Any], ...]:
        """The tool calls in it."""
        return tuple(block for block in self.content if block.get("type") == "tool_use")

    @property
    def text(self) -> str:
        """Its words."""
        return "\n\n".join(block["text"] for block in self.content if block.get("type") == "text")


class Transcript:
    """A file that only grows; every message is on the disk before anything follows from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[Message] = _load(path)

    @property
    def turns(self) -> int:
        """How often the model has answered."""
        return sum(message.role == "assistant" for message in self.messages)

    @property
    def last(self) -> Message | None:
        """The newest message."""
        return self.messages[-1] if self.messages else None

    def append(self, message: Message) -> None:
        """Write a message behind the others and wait until the disk has it.

        Raises:
            StorageError: when the disk refuses.
        """
        append_line(self.path, format_line(message))
        self.messages.append(message)


def _load(path: Path) -> list[Message]:
    lines = read_lines(path, limit=_LIMIT)
    return [_read(line, where=f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _read(line: bytes, *, where: str) -> Message:
    todo = "begin a new run; what this one made is kept"
    try:
        message = read_strict(Message, load_json(line, where=where), where=where)
        json.dumps(to_document(message), allow_nan=False)
    except FormatError as error:
        raise FormatError(error.what, where=error.where, todo=todo) from error
    except ValueError as error:  # NaN and the infinities, which Python reads and no service takes
        raise FormatError(f"no JSON value: {error}", where=where, todo=todo) from error
    return message
