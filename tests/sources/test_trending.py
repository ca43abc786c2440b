"""The Hub's trending list, from a loopback hub."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from fib_tools.errors import OfflineError, SourceError
from fib_tools.sources.huggingface import Hub
from fib_tools.sources.trending import list_trending

ENTRY = {
    "id": "acme/Rocket-1",
    "config": {"architectures": ["LlamaForCausalLM", 3, "../up"]},
    "likes": 12,
    "createdAt": "2026-11-20T10:00:00.000Z",
}


class Handler(BaseHTTPRequestHandler):
    answer: ClassVar[Any] = []
    status: ClassVar[int] = 200
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        body = json.dumps(self.answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def handler() -> Iterator[type[Handler]]:
    bound = type("BoundHandler", (Handler,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    bound.endpoint = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield bound
    server.shutdown()
    thread.join()
    server.server_close()


def hub_of(handler: type[Handler]) -> Hub:
    return Hub(endpoint=handler.endpoint)  # type: ignore[attr-defined]


def test_the_list_holds_what_is_well_formed_in_the_hubs_order(handler: type[Handler]) -> None:
    others = [{**ENTRY, "id": name} for name in ("no-slash", "a/../b", "acme/Second")]
    handler.answer = [ENTRY, *others, {**ENTRY, "id": "acme/None", "config": {}}]
    found = list_trending(7, hub=hub_of(handler))
    assert [(item.repo_id, item.architectures) for item in found] == [
        ("acme/Rocket-1", ("LlamaForCausalLM",)),
        ("acme/Second", ("LlamaForCausalLM",)),
    ]
    assert (found[0].likes, found[0].created) == (12, "2026-11-20")
    asked = parse_qs(urlsplit(handler.asked[0]).query)
    assert (asked["sort"], asked["limit"], asked["pipeline_tag"]) == (["trendingScore"], ["7"], ["text-generation"])


def test_a_hub_that_refuses_is_a_source_error(handler: type[Handler]) -> None:
    handler.status, handler.answer = 403, {"error": "no"}
    with pytest.raises(SourceError, match="status 403"):
        list_trending(1, hub=hub_of(handler))


@pytest.mark.parametrize("answer", ["text", [3], [{"likes": 1}], {"error": "no"}])
def test_an_answer_that_is_no_list_of_models_is_a_source_error(handler: type[Handler], answer: object) -> None:
    handler.answer = answer
    with pytest.raises(SourceError, match="no list of models"):
        list_trending(1, hub=hub_of(handler))


def test_a_hub_that_cannot_be_reached_is_an_offline_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)  # between its tries
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(OfflineError, match="cannot be reached"):
            list_trending(1, hub=Hub(endpoint=f"http://127.0.0.1:{held.getsockname()[1]}"))
