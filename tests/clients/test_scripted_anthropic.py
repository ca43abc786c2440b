"""The stand-in speaks as the service does: the official SDK, strict about every field, is the judge."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import pytest

from scripted_anthropic import Dropped, Fault, Script, ScriptedAnthropic, Text, ToolUse, Turn

ASKED: dict[str, Any] = {
    "model": "claude-of-a-test",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "hello"}],
}
CALL = ToolUse("fib_show_status", {"limit": 3, "fields": ["clones", "dataset"]})


def connect(server: ScriptedAnthropic, *, retries: int = 0) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=server.url, api_key="none", max_retries=retries, _strict_response_validation=True
    )


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_turn_arrives_whole_with_its_usage(is_streamed: bool) -> None:  # noqa: FBT001  # a parameter of the test
    turn = Turn(Text("I look."), CALL, usage={"cache_read_input_tokens": 7})
    with ScriptedAnthropic([turn]) as server, connect(server) as client:
        if is_streamed:
            with client.messages.stream(**ASKED) as stream:
                message: Any = stream.get_final_message()
        else:
            message = client.messages.create(**ASKED)
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.content[0].text == "I look."
    assert (message.content[1].name, message.content[1].input) == (CALL.name, CALL.input)
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (100, 20)
    assert message.usage.cache_read_input_tokens == 7
    assert server.requests[0]["messages"] == ASKED["messages"]
    assert server.headers[0]["authorization"] == "Bearer none"
    assert server.left == 0


def test_faults_have_the_errors_and_headers_of_the_service() -> None:
    script: Script = [Fault(429, {"retry-after": "0"}), Fault(529, {"retry-after": "0"}), Turn(Text("at last"))]
    with ScriptedAnthropic(script) as server, connect(server, retries=2) as client:
        assert client.messages.create(**ASKED).stop_reason == "end_turn"
    assert len(server.requests) == 3
    with ScriptedAnthropic([Fault(529)]) as server, connect(server) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.messages.create(**ASKED)
        assert caught.value.status_code == 529
        assert caught.value.body == {
            "type": "error",
            "error": {"type": "overloaded_error", "message": "scripted fault 529"},
        }


def test_a_dropped_stream_breaks_off_after_its_events() -> None:
    seen = []
    with (
        ScriptedAnthropic([Dropped(Turn(Text("abcdef")), after_events=5)]) as server,
        connect(server) as client,
        pytest.raises(httpx2.RemoteProtocolError),
        client.messages.stream(**ASKED) as stream,
    ):
        seen.extend(event.type for event in stream)
    assert seen == ["message_start", "content_block_start", *["content_block_delta", "text"] * 2]


def test_a_malformed_call_is_streamed_as_it_stands() -> None:
    with ScriptedAnthropic([Turn(ToolUse("fib_show_status", raw='{"limit": '))]) as server, connect(server) as client:
        events: list[Any] = list(client.messages.create(**ASKED, stream=True))
    pieces = [event.delta.partial_json for event in events if event.type == "content_block_delta"]
    assert "".join(pieces) == '{"limit": '
    assert len(pieces) > 2


def test_a_script_may_answer_to_what_was_asked() -> None:
    script: Script = lambda requests: Turn(Text(f"request {len(requests)}"))  # noqa: E731  # as callers write it
    with ScriptedAnthropic(script) as server, connect(server) as client:
        said: list[Any] = [client.messages.create(**ASKED).content[0] for _ in range(2)]
    assert [block.text for block in said] == ["request 1", "request 2"]


def test_tokens_are_counted() -> None:
    with ScriptedAnthropic([]) as server, connect(server) as client:
        counted = client.messages.count_tokens(model=ASKED["model"], messages=ASKED["messages"])
    assert counted.input_tokens > 0
    assert len(server.counted) == 1


def raising(_requests: list[dict[str, Any]]) -> Turn:
    raise ValueError("no answer to this")


@pytest.mark.parametrize(("script", "said"), [([], "ran out"), (raising, "no answer to this")])
def test_a_script_without_an_answer_fails_the_test(script: Script, said: str) -> None:
    with (
        pytest.raises(AssertionError, match=said),
        ScriptedAnthropic(script) as server,
        connect(server) as client,
        pytest.raises(anthropic.BadRequestError, match=said),
    ):
        client.messages.create(**ASKED)


def test_what_claude_code_asks_for_itself_takes_no_turn_of_the_script() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    title = {**ASKED, "output_config": {"format": {"type": "json_schema", "schema": schema}}}
    with ScriptedAnthropic([Turn(Text("the answer"))]) as server, connect(server) as client:
        titled: Any = client.messages.create(**title).content[0]
        answered: Any = client.messages.create(**ASKED).content[0]
    assert (titled.text, answered.text) == ('{"title": "scripted"}', "the answer")
    assert (len(server.side_requests), len(server.requests)) == (1, 1)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/complete")])
def test_anything_else_is_refused_and_noted(method: str, path: str) -> None:
    with ScriptedAnthropic([]) as server:
        assert httpx2.request(method, server.url + path).status_code == 404
    assert server.unknown == [f"{method} {path}"]
