from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fib_tools.errors import (
    ConfigError,
    DocumentTooLargeError,
    FormatError,
    GatedError,
    OfflineError,
    SourceError,
    UnknownModelError,
)
from fib_tools.sources.huggingface import Hub, load_config
from fib_tools.sources.registry import get_model

CONFIG = b'{"architectures": ["LlamaForCausalLM"], "hidden_size": 64}'
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """A loopback hub: repositories by name, and the answers that refuse one."""

    configs: dict[str, bytes] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    endpoint: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.tokens.append(self.headers.get("Authorization"))
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if repository in self.hub.refusals:
            self.refuse(*self.hub.refusals[repository])
        elif repository not in self.hub.configs:
            self.refuse(404, "RepoNotFound")
        elif file != "config.json":
            self.refuse(404, "EntryNotFound")
        elif revision not in {"main", "v1", COMMIT}:
            self.refuse(404, "RevisionNotFound")
        else:
            self.send(self.hub.configs[repository], with_body=with_body)

    def send(self, body: bytes, *, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(body, usedforsecurity=False).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    hub = FakeHub(configs={"acme/Tiny-1B": CONFIG})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_config_comes_from_the_hub_once_and_from_its_cache_after(fake: FakeHub, tmp_path: Path) -> None:
    hub = Hub(endpoint=fake.endpoint, cache_dir=tmp_path)
    first = load_config("acme/Tiny-1B", hub=hub)
    assert first.config == json.loads(CONFIG)
    assert (first.origin, first.repo_id, first.slug, first.revision) == ("hub", "acme/Tiny-1B", "tiny-1b", COMMIT)
    assert first.sha256 == hashlib.sha256(CONFIG).hexdigest()
    assert load_config("acme/Tiny-1B", hub=hub).origin == "cache"
    assert sum(request.startswith("GET") for request in fake.requests) == 1


def test_a_cached_config_is_read_without_asking_anyone_when_offline(fake: FakeHub, tmp_path: Path) -> None:
    hub = Hub(endpoint=fake.endpoint, cache_dir=tmp_path)
    load_config("acme/Tiny-1B", hub=hub)
    fake.requests.clear()
    assert load_config("acme/Tiny-1B", offline=True, hub=hub).origin == "cache"
    assert fake.requests == []


def test_an_uncached_config_offline_is_refused_with_what_to_do(fake: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match=r"may not be asked.*--config FILE"):
        load_config("acme/Tiny-1B", offline=True, hub=Hub(endpoint=fake.endpoint, cache_dir=tmp_path))
    assert fake.requests == []


def test_a_hub_that_cannot_be_reached_is_an_offline_error(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(OfflineError, match="cannot be reached"):
            load_config("acme/Tiny-1B", hub=Hub(endpoint=endpoint, cache_dir=tmp_path))


def test_a_revision_is_asked_for_even_when_the_registry_knows_the_model(fake: FakeHub, tmp_path: Path) -> None:
    fake.configs["moonshotai/Kimi-K2-Instruct"] = CONFIG
    hub = Hub(endpoint=fake.endpoint, cache_dir=tmp_path, revision="v1")
    source = load_config("kimi-k2", hub=hub)
    assert (source.origin, source.slug, source.revision) == ("hub", "kimi-k2", COMMIT)


def test_refresh_asks_the_hub_for_a_model_of_the_registry(fake: FakeHub, tmp_path: Path) -> None:
    fake.configs["moonshotai/Kimi-K2-Instruct"] = CONFIG
    source = load_config("kimi-k2", refresh=True, hub=Hub(endpoint=fake.endpoint, cache_dir=tmp_path))
    assert source.config == json.loads(CONFIG)


def test_a_model_known_by_name_only_is_asked_for_under_its_repository(fake: FakeHub, tmp_path: Path) -> None:
    fake.configs["moonshotai/Kimi-K2-Thinking"] = CONFIG
    source = load_config("kimi-k2-thinking", hub=Hub(endpoint=fake.endpoint, cache_dir=tmp_path))
    assert source.repo_id == "moonshotai/Kimi-K2-Thinking"


def test_the_token_goes_to_the_hub_and_into_no_text(fake: FakeHub, tmp_path: Path) -> None:
    hub = Hub(endpoint=fake.endpoint, cache_dir=tmp_path, token="hf_secret")  # noqa: S106 - a made-up one
    source = load_config("acme/Tiny-1B", hub=hub)
    assert set(fake.tokens) == {"Bearer hf_secret"}
    assert "hf_secret" not in repr(hub) + repr(source)


@pytest.mark.parametrize("refusal", [(403, "GatedRepo"), (401, "GatedRepo"), (403, "")])
def test_a_gated_repository_says_how_to_get_in(fake: FakeHub, tmp_path: Path, refusal: tuple[int, str]) -> None:
    fake.refusals["acme/Gated"] = refusal
    with pytest.raises(GatedError, match=r"accept its licence.*HF_TOKEN"):
        load_config("acme/Gated", hub=Hub(endpoint=fake.endpoint, cache_dir=tmp_path))


def test_a_repository_hidden_from_strangers_may_be_private(fake: FakeHub, tmp_path: Path) -> None:
    fake.refusals["acme/Hidden"] = (401, "RepoNotFound")
    with pytest.raises(GatedError, match="does not exist, or is private"):
        load_config("acme/Hidden", hub=Hub(endpoint=fake.endpoint, cache_dir=tmp_path))


def test_a_repository_that_is_not_there_is_an_unknown_model(fake: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="kimi-k2"):
        load_config("acme/Kimi-K3", hub=Hub(endpoint=fake.endpoint, cache_dir=tmp_path))


@pytest.mark.parametrize("refusal", [(404, "EntryNotFound"), (404, "RevisionNotFound"), (418, "")])
def test_a_repository_without_a_readable_config_is_a_source_error(
    fake: FakeHub, tmp_path: Path, refusal: tuple[int, str]
) -> None:
    fake.refusals["acme/Empty"] = refusal
    with pytest.raises(SourceError, match=r"config\.json|status|revision"):
        load_config("acme/Empty", hub=Hub(endpoint=fake.endpoint, cache_dir=tmp_path))


def test_a_huge_config_on_the_hub_is_refused_before_it_is_fetched(fake: FakeHub, tmp_path: Path) -> None:
    fake.configs["acme/Huge"] = b" " * (3 << 20)
    with pytest.raises(DocumentTooLargeError, match="3145728 bytes"):
        load_config("acme/Huge", hub=Hub(endpoint=fake.endpoint, cache_dir=tmp_path))
    assert not any(request.startswith("GET") for request in fake.requests)


def test_a_broken_config_on_the_hub_is_a_config_error(fake: FakeHub, tmp_path: Path) -> None:
    fake.configs["acme/Broken"] = b"{"
    with pytest.raises(ConfigError, match="acme/Broken"):
        load_config("acme/Broken", hub=Hub(endpoint=fake.endpoint, cache_dir=tmp_path))


def test_a_known_model_needs_no_network() -> None:
    source = load_config("kimi-k2", offline=True)
    assert (source.origin, source.repo_id, source.slug) == ("registry", "moonshotai/Kimi-K2-Instruct", "kimi-k2")
    assert source.config == get_model("kimi-k2").config
    assert source.location.startswith("ai-dynamo/aiconfigurator")


def test_a_given_file_wins_over_the_registry(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(CONFIG)
    source = load_config("kimi-k2", config_file=tmp_path / "mine.json")
    assert (source.origin, source.slug, source.config["hidden_size"]) == ("file", "kimi-k2", 64)


def test_a_given_file_makes_any_name_a_model(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(CONFIG)
    source = load_config("Brand New/Model v2", config_file=tmp_path / "mine.json")
    assert (source.slug, source.repo_id) == ("model-v2", None)


def test_a_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "My_Model"
    folder.mkdir()
    (folder / "config.json").write_bytes(CONFIG)
    source = load_config(str(folder))
    assert (source.origin, source.slug, source.repo_id) == ("local", "my_model", None)


def test_a_given_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="missing"):
        load_config("kimi-k2", config_file=tmp_path / "missing.json")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "huge.json").write_bytes(b" " * (50 << 20))
    with pytest.raises(DocumentTooLargeError):
        load_config("kimi-k2", config_file=tmp_path / "huge.json")


@pytest.mark.parametrize(
    "name", ["kimi-k9", "", "a/b/c", "../secret", "../../etc/passwd", "-x/y", "a/..", "a b/c", "x" * 5000, "\0"]
)
def test_a_name_that_is_no_repository_is_an_unknown_model(name: str) -> None:
    with pytest.raises(UnknownModelError):
        load_config(name, offline=True)
