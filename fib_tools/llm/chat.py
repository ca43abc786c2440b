"""Chat completions as OpenAI defined them and many services speak them: one turn, streamed; the SDK retries by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fib_tools.errors import MissingDependencyError, RequestError, SourceError
from fib_tools.host.env import read_endpoint, read_secret, redact
from fib_tools.llm.prices import Usage
from fib_tools.llm.reply import Reply
from fib_tools.llm.statuses import explain_status, find_address
from fib_tools.llm.transcript import Message, text_block

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["ask_chat", "open_chat_client"]

_ATTEMPTS = 6
_SILENCE_SECONDS = 120.0
_BYTES_PER_TOKEN = 3
"""The estimate where a service does not say what it used."""
_WHERE = "chat completions"
_LATER = "try again later with --resume"


@contextmanager
def open_chat_client(purpose: str) -> Iterator[OpenAI]:
    """Open a client with the key and the address that the environment names; an address of one's own may need no key.

    Raises:
        MissingDependencyError: the SDK is not installed.
        RequestError: there is neither a key nor an address.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingDependencyError("openai", purpose=purpose, install="pip install openai") from error
    key, address = read_secret("OPENAI_API_KEY"), read_endpoint("OPENAI_BASE_URL")
    if not key and not address:
        todo = "set OPENAI_API_KEY, or OPENAI_BASE_URL for a service of your own"
        raise RequestError("no key for chat completions", where="environment", todo=todo)
    with openai.OpenAI(
        api_key=key or "none", base_url=address, max_retries=_ATTEMPTS - 1, timeout=_SILENCE_SECONDS
    ) as client:
        yield client


def ask_chat(client: OpenAI, body: Mapping[str, Any]) -> Reply:
    """Ask for one turn.

    Raises:
        SourceError: the service stayed busy or unreachable, or broke off.
        RequestError: it refuses the key, the model or the request.
    """
    import openai

    try:
        stream = client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
        words, reason, used = _read(stream)
    except openai.APIStatusError as error:
        advice = "check the key, --model and OPENAI_BASE_URL"
        raise explain_status(error.status_code, error.message, where=_WHERE, todo=_LATER, advice=advice) from error
    except openai.OpenAIError as error:
        what = f"the connection to the model broke: {redact(str(error)) or type(error).__name__}"
        raise SourceError(what, where=f"{_WHERE} at {find_address(client)}", todo=_LATER) from error
    text = "".join(words).encode(errors="replace").decode()
    usage = _read_usage(used) or _estimate(body, text)
    return Reply(
        message=Message(role="assistant", content=(text_block(redact(text)),), stop_reason=reason), usage=usage
    )


def _read(stream: Any) -> tuple[list[str], str, Any]:
    words: list[str] = []
    reason, used = "", None
    for chunk in stream:
        used = chunk.usage or used
        for choice in chunk.choices[:1]:
            words.append(choice.delta.content or "")
            reason = choice.finish_reason or reason
    if not reason:
        raise SourceError("the stream ended before the message", where=_WHERE, todo=_LATER)
    return words, reason, used


def _read_usage(used: Any) -> Usage | None:
    if used is None or not used.prompt_tokens:
        return None
    details = getattr(used, "prompt_tokens_details", None)
    cached = (getattr(details, "cached_tokens", None) or 0) if details else 0
    return Usage(input=used.prompt_tokens - cached, cache_read=cached, output=used.completion_tokens or 0)


def _estimate(body: Mapping[str, Any], text: str) -> Usage:
    prompt = sum(len(str(message["content"]).encode()) for message in body["messages"])
    return Usage(input=prompt // _BYTES_PER_TOKEN + 1, output=len(text.encode()) // _BYTES_PER_TOKEN + 1)
