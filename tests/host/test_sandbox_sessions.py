from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from fib_tools.host.sandbox import Limits, Sandbox, Session

JOBS = """
import ctypes, fcntl, os

def echo(payload, channel):
    while data := channel.recv(100):
        channel.sendall(payload["word"].encode() + data[::-1])
    return {"said": "goodbye"}

def hold(payload, channel):
    file = open(payload["file"], "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    channel.sendall(b"h")
    channel.recv(1)

def crash(payload, channel):
    channel.recv(1)
    ctypes.string_at(0)

def write(payload, channel):
    for folder in (payload["allowed"], payload["forbidden"]):
        try:
            open(os.path.join(folder, "file"), "w").close()
            channel.sendall(b"y")
        except OSError:
            channel.sendall(b"n")

def open_socket(payload, channel):
    import socket
    for family in (socket.AF_UNIX, socket.AF_INET):
        try:
            socket.socket(family).close()
            channel.sendall(b"y")
        except OSError:
            channel.sendall(b"n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sessionjobs.py").write_text(JOBS, encoding="utf-8")
    return tmp_path


def ask(session: Session, data: bytes, count: int) -> bytes:
    session.channel.settimeout(30)
    session.channel.sendall(data)
    answer = b""
    while len(answer) < count and (more := session.channel.recv(count - len(answer))):
        answer += more
    return answer


def test_a_session_answers_until_the_other_side_hangs_up(folder: Path) -> None:
    with Sandbox(import_paths=(folder,)) as sandbox:
        session = sandbox.open_session("sessionjobs:echo", {"word": "so "})
        assert ask(session, b"abc", 6) == b"so cba"
        assert session.protections is not None
        assert session.protections.missing() == ()
        assert session.pid
        assert session.close() is session.close()


def test_a_job_finds_a_package_where_whoever_asks_finds_it(folder: Path) -> None:
    (folder / "colorsys.py").write_text("WHERE = 'here'\n", encoding="utf-8")  # the standard library has one too
    (folder / "whose.py").write_text("import colorsys\ndef tell(payload): return {'where': colorsys.WHERE}\n")
    with Sandbox(import_paths=(folder,)) as sandbox:
        assert sandbox.run("whose:tell", {}) == {"where": "here"}


def test_two_sessions_do_not_hear_each_other(folder: Path) -> None:
    with Sandbox(import_paths=(folder,)) as sandbox:
        first, second = (sandbox.open_session("sessionjobs:echo", {"word": word}) for word in ("1", "2"))
        assert [ask(first, b"x", 2), ask(second, b"y", 2), ask(first, b"z", 2)] == [b"1x", b"2y", b"1z"]


def test_the_end_of_a_session_says_which_signal_ended_it(folder: Path) -> None:
    with Sandbox(import_paths=(folder,)) as sandbox:
        session = sandbox.open_session("sessionjobs:crash", {})
        assert ask(session, b"x", 1) == b""
        outcome = session.close()
        assert "SIGSEGV" in str(outcome.error)
        assert session.close() is outcome


def test_a_forgotten_session_ends_by_itself_while_others_go_on(folder: Path) -> None:
    payload = {"file": str(folder / "held")}
    with Sandbox(import_paths=(folder,)) as sandbox:
        forgotten = sandbox.open_session("sessionjobs:hold", payload, limits=Limits(writable=(str(folder),)))
        other = sandbox.open_session("sessionjobs:echo", {"word": "so "})
        assert ask(forgotten, b"", 1) == b"h"
        forgotten.forget()
        forgotten.forget()
        forgotten.wait()
        with (folder / "held").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever held it has gone
        assert ask(other, b"abc", 6) == b"so cba"


def test_a_session_writes_only_where_it_is_let(folder: Path) -> None:
    allowed, forbidden = folder / "allowed", folder / "forbidden"
    allowed.mkdir()
    forbidden.mkdir()
    payload = {"allowed": str(allowed), "forbidden": str(forbidden)}
    with Sandbox(import_paths=(folder,)) as sandbox:
        session = sandbox.open_session("sessionjobs:write", payload, limits=Limits(writable=(str(allowed),)))
        assert ask(session, b"", 2) == b"yn"


@pytest.mark.parametrize(("limits", "answer"), [(Limits(), b"nn"), (Limits(gpu=True), b"yn")])
def test_only_a_gpus_driver_gets_sockets_and_only_those_of_this_machine(
    folder: Path, limits: Limits, answer: bytes
) -> None:
    environment = {"PATH": "/usr/bin"} if limits.gpu else None
    with Sandbox(import_paths=(folder,), environment=environment) as sandbox:
        session = sandbox.open_session("sessionjobs:open_socket", {}, limits=limits)
        assert ask(session, b"", 2) == answer
