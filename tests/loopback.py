"""A small HTTP server on loopback for tests: it counts what writes, and fails as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Answer", "Asked", "Fault", "Loopback", "serve"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request."""

    method: str
    path: str
    """With its query."""
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body) if self.body else {}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What comes back."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Any, status: int = 200) -> Answer:
        return cls(status=status, body=json.dumps(document).encode(), headers={"content-type": "application/json"})


@dataclass(kw_only=True)
class Fault:
    """Fails one request whose method and path hold these words."""

    words: tuple[str, ...]
    answer: Answer | None
    """None: the connection ends without one."""
    is_served: bool = False
    """The request is served, and its answer is lost."""
    hangs: bool = False
    """Nothing comes back, for as long as the server runs."""


class Loopback:
    """Answers requests, one at a time."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.writes: list[str] = []
        """Method and path of each that was served and changes something."""
        self.faults: list[Fault] = []
        self.after_write: Callable[[str], None] = lambda _what: None
        """Called when a write has been served, before it is answered."""
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def answer(self, asked: Asked) -> Answer:
        raise NotImplementedError

    def is_write(self, asked: Asked) -> bool:
        return asked.method != "GET"

    def take(self, asked: Asked) -> Answer | None:
        with self._lock:
            self.asked.append(asked)
            fault = self._find_fault(f"{asked.method} {asked.path}")
            answer = self._serve(asked) if fault is None or fault.is_served else None
        if fault is not None and fault.hangs:
            self.stopped.wait()
        return fault.answer if fault is not None else answer

    def _find_fault(self, what: str) -> Fault | None:
        fault = next((item for item in self.faults if all(word in what for word in item.words)), None)
        if fault is not None:
            self.faults.remove(fault)
        return fault

    def _serve(self, asked: Asked) -> Answer:
        answer = self.answer(asked)
        if self.is_write(asked) and answer.status < 400:
            self.writes.append(f"{asked.method} {asked.path}")
            self.after_write(self.writes[-1])
        return answer


@contextmanager
def serve(loopback: Loopback) -> Iterator[Loopback]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(method=self.command, path=self.path, headers=headers, body=self.read_body(headers))
            answer = loopback.take(asked)
            self.close_connection = answer is None
            if answer is None:
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        def read_body(self, headers: Mapping[str, str]) -> bytes:
            if headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(headers.get("content-length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    loopback.url = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield loopback
    finally:
        loopback.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
