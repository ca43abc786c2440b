"""A local stand-in for the Message Batches API: what is asked is answered by a function, at the second look."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Batches", "serve_batches"]

_BUSY = {"type": "error", "error": {"type": "rate_limit_error", "message": "busy"}}
_STAMP = "2026-11-21T12:00:00Z"


@dataclass
class Batches:
    """What the service was asked."""

    answer: Callable[[int, dict[str, Any]], str | None]
    """Gives the text for a request of a batch, by its place; None: it errs."""
    url: str = ""
    refusals: int = 0
    """So many batches are refused at first: the service is busy."""
    refused: int = 0
    sent: list[list[dict[str, Any]]] = field(default_factory=list)
    looks: int = 0

    def take(self, requests: list[dict[str, Any]]) -> bool:
        """Take a batch, unless it is refused."""
        if self.refused < self.refusals:
            self.refused += 1
            return False
        self.sent.append(requests)
        return True


@contextmanager
def serve_batches(answer: Callable[[int, dict[str, Any]], str | None], *, refusals: int = 0) -> Iterator[Batches]:
    """Serve it."""
    batches = Batches(answer, refusals=refusals)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            taken = batches.take(body["requests"])
            document = self._describe(len(batches.sent), is_done=False) if taken else _BUSY
            self._send(document, status=200 if taken else 429)

        def do_GET(self) -> None:
            number = int(self.path.split("/")[4].partition("?")[0].removeprefix("batch_"))
            if self.path.partition("?")[0].endswith("/results"):
                lines = [self._answer(place, each) for place, each in enumerate(batches.sent[number - 1])]
                self._send_bytes("\n".join(map(json.dumps, reversed(lines))).encode(), "application/binary")
                return
            batches.looks += 1
            self._send(self._describe(number, is_done=batches.looks > 1))

        def _answer(self, place: int, request: dict[str, Any]) -> dict[str, Any]:
            text = batches.answer(place, request["params"])
            if text is None:
                error = {"type": "error", "error": {"type": "api_error", "message": "overloaded"}, "request_id": None}
                return {"custom_id": request["custom_id"], "result": {"type": "errored", "error": error}}
            message = {
                "id": f"msg_{place}",
                "type": "message",
                "role": "assistant",
                "model": request["params"]["model"],
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 1000, "output_tokens": 200},
            }
            return {"custom_id": request["custom_id"], "result": {"type": "succeeded", "message": message}}

        def _describe(self, number: int, *, is_done: bool) -> dict[str, Any]:
            count = len(batches.sent[number - 1])
            names = ("processing", "succeeded", "errored", "canceled", "expired")
            counts = dict.fromkeys(names, 0) | {"succeeded" if is_done else "processing": count}
            return {
                "id": f"batch_{number}",
                "type": "message_batch",
                "processing_status": "ended" if is_done else "in_progress",
                "request_counts": counts,
                "created_at": _STAMP,
                "expires_at": _STAMP,
                "ended_at": _STAMP if is_done else None,
                "results_url": f"{batches.url}/v1/messages/batches/batch_{number}/results" if is_done else None,
            }

        def _send(self, document: dict[str, Any], *, status: int = 200) -> None:
            self._send_bytes(json.dumps(document).encode(), "application/json", status=status)

        def _send_bytes(self, data: bytes, kind: str, *, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("retry-after-ms", "1")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    batches.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield batches
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
