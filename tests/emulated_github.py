"""A stateful GitHub (npm `emulate`), behind Prism with the part of GitHub's own API description that is used.

test -> proxy (counts writes, fails as told) -> Prism (holds requests against the description) -> emulate
"""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loopback import Answer, Asked, Loopback, serve

__all__ = ["EmulatedGitHub", "emulate_github", "validate_github"]

PATHS = (
    "/user",
    "/repos/{owner}/{repo}",
    "/repos/{owner}/{repo}/forks",
    "/repos/{owner}/{repo}/git/refs",
    "/repos/{owner}/{repo}/pulls",
    "/repos/{owner}/{repo}/pulls/{pull_number}",
    "/repos/{owner}/{repo}/pulls/{pull_number}/files",
    "/repos/{owner}/{repo}/issues",
    "/repos/{owner}/{repo}/issues/{issue_number}",
    "/search/issues",
)
LONG_PATHS = {
    "/repos/{owner}/{repo}/git/ref/heads/{ref}": "/repos/{owner}/{repo}/git/ref/{ref}",
    "/repos/{owner}/{repo}/git/ref/heads/fib/kimi-k2/{ref}": "/repos/{owner}/{repo}/git/ref/{ref}",
    "/repos/{owner}/{repo}/contents/docs/{path}": "/repos/{owner}/{repo}/contents/{path}",
}
"""GitHub's parameters hold slashes, Prism's do not: their places with the paths that describe them."""
_VERBS = {"get", "post", "put", "patch", "delete", "parameters"}
_START_SECONDS = 60
_REPOS = ("flashinfer-bench", "flashinfer")


class EmulatedGitHub(Loopback):
    """Passes requests on, and keeps what Prism has to say about them."""

    def __init__(self) -> None:
        super().__init__()
        self.target = ""
        self.violations: list[str] = []
        """What of our requests GitHub's description does not allow."""

    def answer(self, asked: Asked) -> Answer:
        place = urlsplit(self.target)
        assert place.hostname is not None
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        headers = {name: value for name, value in asked.headers.items() if name not in {"host", "accept-encoding"}}
        connection.request(asked.method, asked.path, body=asked.body or None, headers=headers)
        got = connection.getresponse()
        body = got.read()
        kept = {name.lower(): value for name, value in got.getheaders()}
        for violation in json.loads(kept.get("sl-violations", "[]")):
            if violation["location"][0] == "request":
                self.violations.append(f"{asked.method} {asked.path}: {violation['message']}")
        connection.close()
        dropped = {"content-length", "transfer-encoding", "connection", "keep-alive", "sl-violations"}
        kept = {name: value for name, value in kept.items() if name not in dropped}
        return Answer(status=got.status, body=body, headers=kept)


@contextmanager
def validate_github(modules: Path, path: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Start Prism with GitHub's description; give its address, and the port at which it looks for a GitHub."""
    whole = json.loads((modules / "@octokit/openapi/generated/api.github.com.json").read_bytes())
    (folder / "github.json").write_text(json.dumps(_cut(whole)), encoding="utf-8")
    port, upstream = _find_ports()
    prism = ("prism", "proxy", str(folder / "github.json"), f"http://localhost:{upstream}", "-h", "127.0.0.1")
    with _run(modules, path, *prism, "-p", str(port), ready="Prism is listening"):
        yield f"http://127.0.0.1:{port}", upstream


@contextmanager
def emulate_github(
    modules: Path, path: str, folder: Path, *, prism: tuple[str, int], token: str, is_member: bool = True
) -> Iterator[EmulatedGitHub]:
    """Start a GitHub with the repositories of FlashInfer and a user who owns the token, and may be of FlashInfer."""
    seed = folder / "seed.json"
    repos = [{"owner": "flashinfer-ai", "name": name, "auto_init": True} for name in _REPOS]
    members = [{"login": "maker", "role": "admin"}] * is_member
    user = {"login": "maker", "name": "Maker", "email": "maker@example.com"}
    github = {
        "users": [user],
        "orgs": [{"login": "flashinfer-ai", "name": "FlashInfer", "members": members}],
        "repos": repos,
    }
    tokens = {token: {"login": "maker", "scopes": ["repo", "user"]}}
    seed.write_text(json.dumps({"tokens": tokens, "github": github}), encoding="utf-8")
    proxy = EmulatedGitHub()
    proxy.target, upstream = prism
    with serve(proxy):
        start = ("emulate", "start", "-s", "github", "-p", str(upstream), "--seed", str(seed), "--base-url", proxy.url)
        with _run(modules, path, *start, ready="Ready."):
            yield proxy


def _cut(whole: dict[str, Any]) -> dict[str, Any]:
    """Cut a description down to the paths that are used and what they refer to."""
    described = {**dict(zip(PATHS, PATHS, strict=True)), **LONG_PATHS}
    paths = {
        place: {verb: what for verb, what in whole["paths"][path].items() if verb in _VERBS}
        for place, path in described.items()
    }
    wanted: dict[str, Any] = {}
    _follow(paths, whole, wanted)
    components: dict[str, dict[str, Any]] = {}
    for reference, found in wanted.items():
        _, _, section, name = reference.split("/")
        components.setdefault(section, {})[name] = found
    return {"openapi": whole["openapi"], "info": whole["info"], "paths": paths, "components": components}


def _follow(value: Any, whole: dict[str, Any], wanted: dict[str, Any]) -> None:
    if isinstance(value, list):
        for item in value:
            _follow(item, whole, wanted)
    elif isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str) and reference not in wanted:
            found: Any = whole
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]
            wanted[reference] = found
            _follow(found, whole, wanted)
        for item in value.values():
            _follow(item, whole, wanted)


def _find_ports() -> tuple[int, int]:
    """Find two ports that nobody listens at; held together, so that they differ."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@contextmanager
def _run(modules: Path, path: str, command: str, *arguments: str, ready: str) -> Iterator[None]:
    """Run a service of npm for the block, once it says that it is ready."""
    environment = {"PATH": path, "HOME": str(modules), "NO_COLOR": "1"}
    process = subprocess.Popen(
        [str(modules / ".bin" / command), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    drain = threading.Thread(target=_drain, args=(process.stdout.fileno(),), daemon=True)
    try:
        _wait_for(process.stdout.fileno(), ready)
        drain.start()
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)
        if drain.is_alive():
            drain.join(timeout=30)
        process.stdout.close()


def _wait_for(stream: int, ready: str) -> None:
    said = b""
    while ready.encode() not in said:
        readable, _, _ = select.select([stream], [], [], _START_SECONDS)
        more = os.read(stream, 1 << 16) if readable else b""
        assert more, f"it did not start: {said.decode(errors='replace')[-2000:]}"
        said += more


def _drain(stream: int) -> None:
    """Take what a service says, so that it never waits for a reader."""
    while os.read(stream, 1 << 16):
        pass
