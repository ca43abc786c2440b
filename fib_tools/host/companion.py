"""A process of ours that works beside this one: both sides send each other JSON documents, and neither outlives its use.

The kernel ends a companion when the thread that started it ends, so start and end it from one thread.
Its death is seen at once (`watched`), also while something it left behind keeps the channel open.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from fib_tools.errors import ChildCrashedError
from fib_tools.host._linux import die_with_parent
from fib_tools.host.env import redact
from fib_tools.host.process_tree import list_descendants, list_processes

__all__ = ["Channel", "Companion", "run_companion"]

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_BOOTSTRAP = (
    "import os, sys; sys.path[:0] = [sys.argv[1], *filter(None, sys.argv[2].split(os.pathsep))]; "
    "from fib_tools.host.companion import run_companion; run_companion(sys.argv[3], int(sys.argv[4]), sys.argv[5:])"
)
_LENGTH = struct.Struct(">Q")
_LONGEST = 1 << 30
_CHUNK = 1 << 20
_BUFFER_BYTES = 4 << 20
"""Asked for; the kernel gives what it allows. The more fits, the less a companion waits for its reader."""
_LOG_TAIL_BYTES = 4000
_LAST_WORDS_SECONDS = 2.0
"""From the moment that its end of the channel is closed to the end of its process, in which it may say why."""


def _frame(message: Mapping[str, Any]) -> bytes:
    data = json.dumps(message, ensure_ascii=False).encode()
    return _LENGTH.pack(len(data)) + data


class Channel:
    """The companion's end: one message after the other, waiting."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message."""
        self._connection.sendall(_frame(message))

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message; None when the other side is gone."""
        head = self._read(_LENGTH.size)
        body = self._read(_LENGTH.unpack(head)[0]) if head else None
        return None if body is None else dict(json.loads(body))

    def _read(self, count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            chunk = self._connection.recv(min(_CHUNK, count - len(data)))
            if not chunk:
                return None
            data += chunk
        return bytes(data)


class Companion:
    """This process's end: sending and receiving never wait; wait for `watched` with a selector."""

    def __init__(
        self,
        entry: str,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str],
        descriptors: Sequence[int] = (),
        import_paths: Sequence[Path] = (),
    ) -> None:
        """Start `module:function`, which is called with its Channel and the arguments; it inherits the descriptors."""
        self._connection, theirs = socket.socketpair()
        for end in (self._connection, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed in end()
        paths = os.pathsep.join(str(path.resolve()) for path in import_paths)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and our own code
                [sys.executable, "-I", "-c", _BOOTSTRAP, str(_PACKAGE_ROOT), paths, entry, str(theirs.fileno()),
                 *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                pass_fds=(theirs.fileno(), *descriptors),
            )  # fmt: skip
        self._connection.setblocking(False)
        self._death = _open_pidfd(self._process.pid)
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._is_closed = False

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""
        return self._process.pid

    @property
    def watched(self) -> tuple[int, ...]:
        """Descriptors that become readable when it says something or dies."""
        return (self._connection.fileno(), *(() if self._death is None else (self._death,)))

    @property
    def has_more_to_send(self) -> bool:
        """Tell whether something still waits for room: call `flush` when the first of `watched` is writable."""
        return bool(self._outgoing)

    @property
    def has_ended(self) -> bool:
        """Tell whether it died or hung up; what it said before can still be received."""
        return self._is_closed or self._process.poll() is not None

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message as soon as there is room for it."""
        self._outgoing += _frame(message)
        self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        try:
            while self._outgoing:
                sent = self._connection.send(self._outgoing[:_CHUNK])
                del self._outgoing[:sent]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):  # `has_ended` says the rest
            self._outgoing.clear()

    def receive(self) -> list[dict[str, Any]]:
        """Take the messages that have come.

        Raises:
            ChildCrashedError: what came is no message.
        """
        has_died = self._process.poll() is not None
        try:
            while chunk := self._connection.recv(_CHUNK):
                self._incoming += chunk
            self._is_closed = True
        except BlockingIOError:
            self._is_closed = has_died  # whoever still has the other end open says nothing of his own
        except ConnectionResetError:
            self._is_closed = True
        return list(self._split())

    def _split(self) -> Iterator[dict[str, Any]]:
        while len(self._incoming) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._incoming)
            if length > _LONGEST:
                raise ChildCrashedError(f"a message of {length} bytes", where=f"process {self.pid}")
            if len(self._incoming) < _LENGTH.size + length:
                return
            body = bytes(self._incoming[_LENGTH.size : _LENGTH.size + length])
            del self._incoming[: _LENGTH.size + length]
            try:
                message = json.loads(body)
            except ValueError as error:
                raise ChildCrashedError("a message that is not JSON", where=f"process {self.pid}") from error
            yield dict(message)

    def describe_end(self) -> str:
        """Say how it died and what it wrote last, for people."""
        status = self._process.poll()
        how = "runs" if status is None else f"ended with status {status}" if status >= 0 else _name_signal(-status)
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - _LOG_TAIL_BYTES))
        said = redact(self._log.read().decode("utf-8", errors="replace")).strip()
        return f"{how}; it wrote: {said}" if said else f"{how}, and wrote nothing"

    def hang_up(self, *, seconds: float) -> None:
        """Let it come to an end of its own: it sees that this side is gone."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)

    def kill(self) -> None:
        """End it and everything that it started: at once, unless it has hung up and is about to end of itself."""
        if self._is_closed:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_LAST_WORDS_SECONDS)
        pids = set()
        if self._process.poll() is None:
            pids = list_descendants([self.pid], list_processes()) - {self.pid}
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it, and give back what it took here."""
        self.kill()
        self._connection.close()
        self._log.close()
        if self._death is not None:
            os.close(self._death)
            self._death = None


def _open_pidfd(pid: int) -> int | None:
    """Open what becomes readable at the process's death, where the kernel has such a thing."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return int(os.pidfd_open(pid))
    except OSError:
        return None


def _name_signal(number: int) -> str:
    try:
        return f"died by {signal.Signals(number).name}"
    except ValueError:
        return f"died by signal {number}"


def run_companion(entry: str, descriptor: int, arguments: Sequence[str]) -> None:
    """Be a companion: the way in, in its own process."""
    die_with_parent()
    os.set_inheritable(descriptor, False)
    connection = socket.socket(fileno=descriptor)  # closed by the end of the process, and not before
    resolve_name(entry)(Channel(connection), list(arguments))
