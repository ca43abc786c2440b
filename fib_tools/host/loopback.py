"""A web server for whoever sits at this machine: on loopback only, and it answers with what one function gives.

A page of another site cannot read it by a name of its own that points here: the Host header has to be a loopback name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from fib_tools.errors import FibError, RequestError
from fib_tools.host.env import redact

__all__ = ["Answer", "LoopbackServer"]

_ADDRESS = "127.0.0.1"
_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d{1,5})?", re.IGNORECASE)
"""With any port: a tunnel may end at another one."""
_IDLE_SECONDS = 60.0
_HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What is at a path."""

    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "fib"
    sys_version = ""
    timeout = _IDLE_SECONDS
    server: LoopbackServer

    def do_GET(self) -> None:
        """Answer with what there is."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer with the headers of what there is."""
        self._answer()

    def _answer(self) -> None:
        if not _HOST.fullmatch(self.headers.get("Host", "")):
            self._refuse(403, "this server answers to 127.0.0.1 and localhost only")
            return
        try:
            path = unquote(urlsplit(self.path).path).lstrip("/")
        except ValueError:
            self._refuse(400, "this is no address")
            return
        try:
            found = self.server.find(path)
        except FibError as error:
            self._refuse(500, redact(str(error)))
            return
        if found is None:
            self._refuse(404, "there is no such page; begin at /")
        else:
            self._send(200, found)

    def _refuse(self, status: int, reason: str) -> None:
        self._send(status, Answer(body=f"{reason}\n".encode(), media_type="text/plain; charset=utf-8"))

    def _send(self, status: int, answer: Answer) -> None:
        self.send_response(status)
        headers = {"Content-Type": answer.media_type, "Content-Length": str(len(answer.body))}
        for name, value in {**headers, **_HEADERS, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing: whoever asks is at this machine."""


class LoopbackServer(ThreadingMixIn, TCPServer):
    """Bound when it is made, so that its address can be told; it answers once `serve_forever` is called."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, find: Callable[[str], Answer | None], *, port: int = 0) -> None:
        """Bind a port; 0 takes a free one.

        Raises:
            RequestError: the port is taken, or not ours to take.
        """
        self.find = find
        self._serves = False
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except OSError as error:
            what = f"cannot listen on {_ADDRESS}:{port}: {error.strerror or error}"
            raise RequestError(what, todo="choose another --port, or 0 for a free one") from error

    @property
    def url(self) -> str:
        """Where its first page is."""
        return f"http://{_ADDRESS}:{self.server_address[1]}/"

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Answer until stopped or interrupted."""
        self._serves = True
        super().serve_forever(poll_interval)

    def stop(self) -> None:
        """End it, from another thread if it serves, and give the port back."""
        if self._serves:
            self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Leave a browser alone that went away; anything else is a crash, and is told."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]
