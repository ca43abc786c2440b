"""One answer of the model, read from the stream and checked before anything follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fib_tools.errors import FormatError
from fib_tools.host.env import redact
from fib_tools.llm.prices import Usage
from fib_tools.llm.transcript import Message, text_block
from fib_tools.model.canonical import load_json

if TYPE_CHECKING:
    from anthropic import MessageStream

__all__ = ["BrokenStreamError", "Reply", "StreamReader", "read_message"]

_CHARACTERS_PER_TOKEN = 3
"""The estimate for an answer that broke off before it said what it used."""

_FOR_US = frozenset({"parsed_output"})
"""What the SDK adds to a block for its caller; the service does not take it back."""

_UNREADABLE = (ValueError, RuntimeError, LookupError, AttributeError, TypeError)
"""What the SDK raises over events that make no sense; it builds them without a check of their fields."""


class BrokenStreamError(Exception):
    """The stream ended before the message did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A whole answer and what it used."""

    message: Message
    usage: Usage


@dataclass(kw_only=True)
class StreamReader:
    """Reads one stream; after a failure, `usage` still tells what it will have cost."""

    show: Callable[[str], None]
    """Given the text so far, whenever there is more of it."""
    usage: Usage = field(default_factory=Usage)
    _inputs: dict[int, str] = field(default_factory=dict)
    """The JSON of each tool call as it came, by the number of its block."""
    _characters: int = 0

    def read(self, stream: MessageStream[Any]) -> Reply:
        """Read the stream to its end.

        Raises:
            BrokenStreamError: it ended early; nothing of it may be used.
        """
        try:
            if not self._read_events(stream):
                raise BrokenStreamError("the stream ended before the message")
            return Reply(message=self._message(stream.current_message_snapshot), usage=self.usage)
        except _UNREADABLE as error:
            raise BrokenStreamError("the stream is not what the service sends") from error

    def _read_events(self, stream: MessageStream[Any]) -> bool:
        """Take the events; tell whether they make a whole message, or one whose last tool call is malformed."""
        has_begun = False
        try:
            for event in stream:
                self._take(event)
                has_begun = has_begun or event.type == "message_start"
                if has_begun and event.type == "message_stop":
                    self.usage = _read_usage(stream.current_message_snapshot.usage)
                    return True
        except ValueError as error:
            # The SDK gives up on a tool call whose input is no JSON; the model shall hear of that.
            if isinstance(error, json.JSONDecodeError) or not any(map(_find_fault, self._inputs.values())):
                raise
            return has_begun
        return False

    def _take(self, event: Any) -> None:
        if event.type == "message_start":
            self.usage = _read_usage(event.message.usage)
        elif event.type == "text":
            self._count(event.text)
            self.show(event.snapshot)
        elif event.type == "content_block_delta" and event.delta.type == "input_json_delta":
            self._count(event.delta.partial_json)
            self._inputs[event.index] = self._inputs.get(event.index, "") + event.delta.partial_json
        elif event.type == "content_block_delta" and event.delta.type == "thinking_delta":
            self._count(event.delta.thinking)

    def _count(self, text: str) -> None:
        self._characters += len(text)
        least = self._characters // _CHARACTERS_PER_TOKEN
        self.usage = self.usage.model_copy(update={"output": max(self.usage.output, least)})

    def _message(self, snapshot: Any) -> Message:
        content: list[dict[str, Any]] = []
        malformed: dict[str, str] = {}
        for index, block in enumerate(snapshot.content):
            plain = _plain_block(block)
            if plain["type"] == "tool_use":
                fault = _find_fault(self._inputs.get(index, "")) or _find_wrong_kind(plain["input"])
                if fault:
                    plain["input"] = {}
                    malformed[plain["id"]] = fault
            if plain["type"] != "text" or plain["text"].strip():  # the service does not take empty text back
                content.append(plain)
        is_cut = snapshot.stop_reason == "max_tokens" and content and content[-1]["type"] == "tool_use"
        if is_cut:
            content[-1]["input"] = {}
            malformed[content[-1]["id"]] = "the call was cut off at the limit of max_tokens"
        return Message(
            role="assistant",
            content=tuple(content) or (text_block("(nothing)"),),
            stop_reason=snapshot.stop_reason or "tool_use",
            malformed=malformed,
        )


def read_message(message: Any) -> Reply:
    """Read an answer that came whole, without tool calls."""
    blocks = (_plain_block(block) for block in message.content)
    content = tuple(block for block in blocks if block["type"] == "text" and block["text"].strip())
    return Reply(
        message=Message(
            role="assistant",
            content=content or (text_block("(nothing)"),),
            stop_reason=message.stop_reason or "end_turn",
        ),
        usage=_read_usage(message.usage),
    )


def _plain_block(block: Any) -> dict[str, Any]:
    """Turn a block into what the service takes back; half characters become question marks, which files can hold."""
    document = {
        name: value for name, value in block.to_dict(mode="json", warnings=False).items() if name not in _FOR_US
    }
    plain: dict[str, Any] = json.loads(json.dumps(document, ensure_ascii=False).encode(errors="replace"))
    if plain["type"] == "text":
        plain["text"] = redact(plain["text"])
    return plain


def _find_fault(text: str) -> str | None:
    """Find what is wrong with the JSON of a tool call's input; a call without arguments may have none at all."""
    try:
        load_json(text or "{}", where="input")
    except FormatError as error:
        return str(error)
    return None


def _find_wrong_kind(value: Any) -> str | None:
    return None if isinstance(value, dict) else f"the input is a {type(value).__name__}, not an object"


def _read_usage(usage: Any) -> Usage:
    return Usage(
        input=usage.input_tokens or 0,
        output=usage.output_tokens or 0,
        cache_write=usage.cache_creation_input_tokens or 0,
        cache_read=usage.cache_read_input_tokens or 0,
    )
