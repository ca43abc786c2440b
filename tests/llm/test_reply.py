from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest

from fib_tools.errors import SourceError
from fib_tools.llm.prices import Usage
from fib_tools.llm.reply import Reply
from fib_tools.llm.service import Service

BODY = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}

START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 50, "output_tokens": 1, "cache_read_input_tokens": 7},
    },
}
END = (
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 30},
    },
    {"type": "message_stop"},
)


def block(index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "content_block_start", "index": index, "content_block": begun}
    yield from ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
    yield {"type": "content_block_stop", "index": index}


def words(text: str, index: int = 0) -> Iterator[dict[str, Any]]:
    return block(index, {"type": "text", "text": ""}, {"type": "text_delta", "text": text})


def event(document: dict[str, Any]) -> str:
    return f"event: {document['type']}\ndata: {json.dumps(document)}\n\n"


class Wire:
    """A service whose every answer is one text, byte for byte."""

    def __init__(self, *answers: str) -> None:
        self.discarded: list[Usage] = []
        self.told: list[str] = []
        self._answers = iter(answers)

    def ask(self) -> Reply:
        transport = httpx2.MockTransport(self._answer)
        with anthropic.Anthropic(
            api_key="none", max_retries=0, http_client=httpx2.Client(transport=transport)
        ) as client:
            service = Service(
                client=client,
                sleep=lambda _seconds: None,
                tell=self.told.append,
                discard=self.discarded.append,
                resume_hint="come back",
            )
            return service.ask(lambda: BODY)

    def _answer(self, _request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=next(self._answers))


def stream(*events: dict[str, Any]) -> str:
    return "".join(map(event, (START, *events)))


def test_thoughts_are_kept_as_they_came_since_the_service_checks_their_signature() -> None:
    thought = block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Let me see."},
        {"type": "signature_delta", "signature": "c2ln+bmF0dXJl=="},
    )
    hidden = block(1, {"type": "redacted_thinking", "data": "b3BhcXVl"})
    reply = Wire(stream(*thought, *hidden, *words("Yes.", index=2), *END)).ask()

    assert reply.message.content == (
        {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln+bmF0dXJl=="},
        {"type": "redacted_thinking", "data": "b3BhcXVl"},
        {"type": "text", "text": "Yes."},
    )
    assert reply.usage == Usage(input=50, output=30, cache_read=7)


def test_an_event_of_a_kind_that_nobody_knows_does_no_harm() -> None:
    reply = Wire(stream({"type": "weather", "sky": "clear"}, *words("Yes."), *END)).ask()
    assert reply.message.text == "Yes."


def test_empty_text_is_left_out_because_the_service_does_not_take_it_back() -> None:
    reply = Wire(stream(*words(" "), *words("Yes.", index=1), *END)).ask()
    assert reply.message.content == ({"type": "text", "text": "Yes."},)


def test_an_answer_without_any_block_is_still_a_message() -> None:
    assert Wire(stream(*END)).ask().message.text == "(nothing)"


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "too much"}}
WHOLE = stream(*words("Yes."), *END)


@pytest.mark.parametrize(
    "broken",
    [
        stream(*words("Half an ans"), OVERLOADED),
        stream(*words("Half an ans")),
        stream(*words("Half an ans"), END[0]),
        stream() + "event: content_block_start\ndata: {broken\n\n",
        stream({"type": "content_block_delta", "index": 4, "delta": {"type": "text_delta", "text": "where?"}}),
        stream({"type": "content_block_delta", "index": 0, "delta": None}),
        stream({"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}, *END),
        event(END[1]),
        "<html>a proxy's page</html>",
        "",
    ],
    ids=[
        "an error inside",
        "it ends early",
        "it ends before its last event",
        "no JSON",
        "no such block",
        "no delta",
        "no text",
        "no beginning",
        "no stream",
        "nothing",
    ],
)
def test_a_broken_stream_is_asked_for_again_and_nothing_of_it_is_used(broken: str) -> None:
    wire = Wire(broken, WHOLE)
    assert wire.ask().message.content == ({"type": "text", "text": "Yes."},)
    assert any("attempt 2 of 6" in line for line in wire.told)
    assert [usage.input for usage in wire.discarded] == ([50] if "message_start" in broken else [])


def test_the_estimate_for_a_broken_answer_grows_with_what_came() -> None:
    wire = Wire(stream(*words("x" * 900)), WHOLE)
    wire.ask()
    assert wire.discarded == [Usage(input=50, output=300, cache_read=7)]


def test_a_service_that_only_sends_broken_streams_is_given_up_with_advice() -> None:
    with pytest.raises(SourceError, match="come back"):
        Wire(*[""] * 6).ask()
