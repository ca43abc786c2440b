"""A local stand-in for the Anthropic Messages API that answers from a script, and records what it was asked.

    with ScriptedAnthropic([Turn(ToolUse("fib_show_status", {})), Turn(Text("done"))]) as server:
        client = anthropic.Anthropic(base_url=server.url, api_key="none")

Each request of the conversation takes the next item of the script; a `Fault` or a `Dropped` takes one too.
What Claude Code asks beside its conversation (a title, a quota check) is answered harmlessly and kept in `side_requests`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from typing_extensions import Self

__all__ = ["Dropped", "Fault", "Script", "ScriptedAnthropic", "Text", "ToolUse", "Turn", "is_side_request"]

_PIECES = 3
"""A tool's input is streamed in so many pieces, as the real service streams it."""


@dataclass(frozen=True)
class Text:
    """Words of the model."""

    text: str


@dataclass(frozen=True)
class ToolUse:
    """The model calls a tool."""

    name: str
    input: Mapping[str, Any] = field(default_factory=dict)
    raw: str | None = None
    """What is streamed as the input in place of its JSON, to be malformed on purpose."""


class Turn:
    """One answer of the model."""

    def __init__(
        self, *blocks: Text | ToolUse, usage: Mapping[str, int] | None = None, stop_reason: str | None = None
    ) -> None:
        self.blocks = blocks
        self.usage = {"input_tokens": 100, "output_tokens": 20, **(usage or {})}
        has_tool = any(isinstance(block, ToolUse) for block in blocks)
        self.stop_reason = stop_reason or ("tool_use" if has_tool else "end_turn")

    def __repr__(self) -> str:
        return f"Turn({', '.join(map(repr, self.blocks))})"


@dataclass(frozen=True)
class Fault:
    """The service refuses."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    """Left out: the error document that the real service sends with this status."""


@dataclass(frozen=True)
class Dropped:
    """The stream breaks off: the connection closes after so many events."""

    turn: Turn
    after_events: int = 3


Script = Sequence[Turn | Fault | Dropped] | Callable[[list[dict[str, Any]]], Turn | Fault | Dropped]
"""The answers in their order, or a function of the conversation's requests so far, the newest last."""

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


class ScriptedAnthropic:
    """The server, for as long as the `with` block lasts; leaving it fails when the script ran out."""

    def __init__(self, script: Script) -> None:
        self.requests: list[dict[str, Any]] = []
        """Bodies of the conversation's requests, in order of arrival."""
        self.headers: list[dict[str, str]] = []
        """Headers of the same requests; names in lower case."""
        self.side_requests: list[dict[str, Any]] = []
        """Bodies of what is not the conversation."""
        self.counted: list[dict[str, Any]] = []
        """Bodies of requests to count tokens."""
        self.unknown: list[str] = []
        """Methods and paths of everything else that was asked."""
        self.faults: list[str] = []
        """What went wrong with the script itself: it ran out, or its function raised."""
        self._script = script
        self._position = 0
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """The base URL for ANTHROPIC_BASE_URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def left(self) -> int:
        """How much of a script that is a sequence has not been asked for."""
        return 0 if callable(self._script) else len(self._script) - self._position

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if kind is None and self.faults:
            raise AssertionError("; ".join(self.faults))

    def answer(self, body: dict[str, Any], headers: dict[str, str]) -> Turn | Fault | Dropped:
        """Record a request and take what the script has for it."""
        with self._lock:
            if is_side_request(body):
                self.side_requests.append(body)
                return _answer_side_request(body)
            self.requests.append(body)
            self.headers.append(headers)
            try:
                return self._take()
            except Exception as error:  # noqa: BLE001  # whatever a test's function raises is told when the block ends
                self.faults.append(f"request {len(self.requests)}: {error!r}")
                return Fault(400, body=_error_document(400, f"the script failed: {error!r}"))

    def _take(self) -> Turn | Fault | Dropped:
        if callable(self._script):
            return self._script(list(self.requests))
        if self._position >= len(self._script):
            raise AssertionError(f"the script of {len(self._script)} answers ran out")
        self._position += 1
        return self._script[self._position - 1]


def is_side_request(body: Mapping[str, Any]) -> bool:
    """Tell whether Claude Code asks this for itself: a title in a format of its own, or a check of the quota."""
    return not body.get("tools") and (body.get("max_tokens") == 1 or bool(_find_format(body)))


def _find_format(body: Mapping[str, Any]) -> Mapping[str, Any]:
    chosen: Mapping[str, Any] = (body.get("output_config") or {}).get("format") or {}
    return chosen


def _answer_side_request(body: Mapping[str, Any]) -> Turn:
    properties = _find_format(body).get("schema", {}).get("properties", {})
    return Turn(Text(json.dumps(dict.fromkeys(properties, "scripted")) if properties else "scripted"))


def _error_document(status: int, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": _ERRORS.get(status, "api_error"), "message": message}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, owner: ScriptedAnthropic) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that hang up; what matters to a test is recorded."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self._refuse()

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(size)
        path = self.path.split("?")[0]
        if path == "/v1/messages/count_tokens":
            self._count(json.loads(content))
        elif path == "/v1/messages":
            self._answer(json.loads(content))
        else:
            self._refuse()

    def _count(self, body: dict[str, Any]) -> None:
        self.server.owner.counted.append(body)
        self._send(200, {"input_tokens": max(1, len(json.dumps(body)) // 4)})

    def _answer(self, body: dict[str, Any]) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.owner.answer(body, headers)
        if isinstance(answer, Fault):
            document = answer.body or _error_document(answer.status, f"scripted fault {answer.status}")
            self._send(answer.status, document, headers=answer.headers)
        elif body.get("stream"):
            self._stream(answer, body)
        elif isinstance(answer, Dropped):
            self._hang_up()
        else:
            self._send(200, _message(answer, body, number=len(self.server.owner.requests)))

    def _stream(self, answer: Turn | Dropped, body: dict[str, Any]) -> None:
        turn = answer.turn if isinstance(answer, Dropped) else answer
        events = list(_list_events(turn, body, number=len(self.server.owner.requests)))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self._send_ids()
        self.end_headers()
        for event in events[: answer.after_events] if isinstance(answer, Dropped) else events:
            text = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            self.wfile.flush()
        if isinstance(answer, Dropped):
            self._hang_up()
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _refuse(self) -> None:
        self.server.owner.unknown.append(f"{self.command} {self.path}")
        self._send(404, _error_document(404, f"{self.command} {self.path} is not scripted"))

    def _send(self, status: int, document: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self._send_ids()
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _send_ids(self) -> None:
        self.send_header("request-id", f"req_scripted_{len(self.server.owner.requests):04d}")

    def _hang_up(self) -> None:
        """Close in the middle of the chunked body, as a lost connection does."""
        self.wfile.flush()
        self.close_connection = True


def _list_blocks(turn: Turn, number: int) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for index, block in enumerate(turn.blocks):
        if isinstance(block, Text):
            blocks.append({"type": "text", "text": block.text})
        else:
            identity = f"toolu_scripted_{number:04d}_{index}"
            blocks.append({"type": "tool_use", "id": identity, "name": block.name, "input": dict(block.input)})
    return blocks


def _message(turn: Turn, body: Mapping[str, Any], *, number: int) -> dict[str, Any]:
    return {
        "id": f"msg_scripted_{number:04d}",
        "type": "message",
        "role": "assistant",
        "model": body.get("model", "scripted"),
        "content": _list_blocks(turn, number),
        "stop_reason": turn.stop_reason,
        "stop_sequence": None,
        "usage": dict(turn.usage),
    }


def _list_events(turn: Turn, body: Mapping[str, Any], *, number: int) -> Iterator[dict[str, Any]]:
    """List the events of a streamed answer, in the order the real service sends them."""
    message = _message(turn, body, number=number)
    blocks = message["content"]
    begun = {**message, "content": [], "stop_reason": None, "usage": {**turn.usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": begun}
    yield {"type": "ping"}
    for index, (block, sent) in enumerate(zip(turn.blocks, blocks, strict=True)):
        empty = {**sent, "text": ""} if isinstance(block, Text) else {**sent, "input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in _list_deltas(block):
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": turn.stop_reason, "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": dict(turn.usage)}
    yield {"type": "message_stop"}


def _list_deltas(block: Text | ToolUse) -> Iterator[dict[str, Any]]:
    if isinstance(block, Text):
        yield from ({"type": "text_delta", "text": piece} for piece in _cut(block.text))
        return
    content = json.dumps(dict(block.input)) if block.raw is None else block.raw
    yield {"type": "input_json_delta", "partial_json": ""}
    yield from ({"type": "input_json_delta", "partial_json": piece} for piece in _cut(content))


def _cut(text: str) -> list[str]:
    size = max(1, -(-len(text) // _PIECES))
    return [text[start : start + size] for start in range(0, len(text), size)]
