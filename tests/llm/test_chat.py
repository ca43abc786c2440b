from __future__ import annotations

import sys
from typing import Any

import pytest

from fib_tools.errors import MissingDependencyError, RequestError, SourceError
from fib_tools.llm.chat import ask_chat, open_chat_client
from fib_tools.llm.prices import Usage
from fib_tools.llm.reply import Reply
from scripted_chat import serve_chat

BODY: dict[str, Any] = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "a" * 300}]}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


def ask(monkeypatch: pytest.MonkeyPatch, url: str) -> Reply:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with open_chat_client("a test") as client:
        return ask_chat(client, BODY)


def test_an_answer_comes_with_what_it_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_chat(["hello, kernel"]) as (url, asked):
        reply = ask(monkeypatch, url)
    assert reply.message.text == "hello, kernel"
    assert reply.message.stop_reason == "stop"
    assert reply.usage == Usage(input=40, cache_read=60, output=20)
    assert asked[0]["max_tokens"] == 50
    assert asked[0]["stream"] is True


def test_a_service_that_does_not_say_what_it_used_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_chat(["x" * 90], has_usage=False) as (url, _):
        assert ask(monkeypatch, url).usage == Usage(input=101, output=31)


def test_a_busy_service_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_chat([429, 503, "at last"]) as (url, asked):
        assert ask(monkeypatch, url).message.text == "at last"
    assert len(asked) == 3


@pytest.mark.parametrize(("script", "error"), [([401], RequestError), ([404], RequestError), ([500] * 6, SourceError)])
def test_a_refusal_says_whose_fault_it_is(
    monkeypatch: pytest.MonkeyPatch, script: list[int], error: type[Exception]
) -> None:
    with serve_chat(script) as (url, _), pytest.raises(error, match=str(script[0])):
        ask(monkeypatch, url)


def test_a_stream_that_breaks_off_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serve_chat(["half"], breaks_off=True) as (url, _),
        pytest.raises(SourceError, match="ended before the message"),
    ):
        ask(monkeypatch, url)


def test_a_key_or_an_address_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="no key for chat completions"), open_chat_client("a test"):
        pass
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match="a test"), open_chat_client("a test"):
        pass
