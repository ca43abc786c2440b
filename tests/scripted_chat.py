"""A local service that speaks chat completions, streamed, from a script of answers: text, or a status to refuse with."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["serve_chat"]


@contextmanager
def serve_chat(
    script: Sequence[str | int], *, has_usage: bool = True, breaks_off: bool = False
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve it; give the base URL and the bodies that were asked."""
    asked: list[dict[str, Any]] = []
    waiting = list(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            item = waiting.pop(0)
            if isinstance(item, int):
                self._refuse(item)
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            half = len(item) // 2
            self._say({"choices": [{"index": 0, "delta": {"role": "assistant", "content": item[:half]}}]})
            if breaks_off:
                return
            self._say({"choices": [{"index": 0, "delta": {"content": item[half:]}, "finish_reason": "stop"}]})
            if has_usage:
                details = {"cached_tokens": 60}
                usage = {
                    "prompt_tokens": 100,
                    "completion_tokens": 20,
                    "total_tokens": 120,
                    "prompt_tokens_details": details,
                }
                self._say({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")

        def _refuse(self, status: int) -> None:
            body = json.dumps({"error": {"message": f"refused with {status}", "type": "error"}}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(body)

        def _say(self, chunk: dict[str, Any]) -> None:
            whole = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", **chunk}
            self.wfile.write(f"data: {json.dumps(whole)}\n\n".encode())

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
