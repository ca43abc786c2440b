"""Commands that end: with a time limit, a bounded output, and nothing left running."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from fib_tools.errors import ChildTimeoutError, MissingDependencyError, StorageError
from fib_tools.host.env import redact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Completed", "run_command"]

_OUTPUT_BYTES = 8 << 20
_GRACE_SECONDS = 2.0
"""From SIGTERM to SIGKILL."""
_TICK_SECONDS = 0.1
"""How often to look whether the command ended while something it left behind keeps its output open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """A command that came to its end."""

    args: tuple[str, ...]
    status: int
    """Exit status; negative: the signal that ended it."""
    stdout: str
    stderr: str
    """Redacted, as it ends up in messages."""
    is_truncated: bool
    """One of the streams was longer than what is kept."""


class _Capture:
    """The beginning of one stream; the rest is read and dropped, so that the writer never blocks."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_truncated = False

    def take(self, chunk: bytes) -> None:
        room = _OUTPUT_BYTES - len(self.data)
        self.data += chunk[:room]
        self.is_truncated |= len(chunk) > room

    def text(self) -> str:
        return self.data.decode("utf-8", errors="replace")


def run_command(
    args: Sequence[str],
    *,
    cwd: Path,
    timeout: float,
    env: Mapping[str, str],
    descriptors: Sequence[int] = (),
    stop: threading.Event | None = None,
) -> Completed:
    """Run a command without a shell, in its own process group; what its status means is for the caller to say.

    It inherits the descriptors, such as those of locks that are to live as long as it does. At the time limit, an interrupt
    or when another thread sets `stop`, the whole group gets SIGTERM, then SIGKILL.

    Raises:
        ChildTimeoutError: it ran past `timeout` seconds.
        KeyboardInterrupt: another thread set `stop`, since interrupts reach the main thread alone.
        MissingDependencyError: the program is not installed.
        StorageError: the folder `cwd` cannot be used.
    """
    process = _start(args, cwd, env, descriptors)
    captures = (_Capture(), _Capture())
    try:
        in_time = _follow(process, captures, deadline=time.monotonic() + timeout, stop=stop)
        if not in_time:
            _end_group(process)
    except BaseException:
        _end_group(process)
        raise
    finally:
        _kill_group(process)
        _close_streams(process)
    out, err = captures
    if not in_time:
        what = f"{redact(' '.join(args))[:200]!r} ran past {timeout:g} s"
        raise ChildTimeoutError(what, where=str(cwd), todo="try again, or raise the time limit")
    return Completed(
        args=tuple(args),
        status=process.wait(),
        stdout=out.text(),
        stderr=redact(err.text()),
        is_truncated=out.is_truncated or err.is_truncated,
    )


def _start(
    args: Sequence[str], cwd: Path, env: Mapping[str, str], descriptors: Sequence[int]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603  # no shell; who calls has checked the arguments
            list(args),
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=tuple(descriptors),
        )
    except FileNotFoundError as error:
        if not cwd.is_dir():
            raise StorageError("no such folder", where=str(cwd), todo="create it first") from error
        name = args[0]
        install = f"your system's package manager for {name}"
        raise MissingDependencyError(name, purpose=f"the command {name!r}", install=install) from error
    except (NotADirectoryError, PermissionError) as error:
        raise StorageError(f"cannot run {args[0]!r}: {error.strerror}", where=str(cwd)) from error


def _streams(process: subprocess.Popen[bytes]) -> list[IO[bytes]]:
    return [stream for stream in (process.stdout, process.stderr) if stream is not None]


def _follow(
    process: subprocess.Popen[bytes], captures: Sequence[_Capture], *, deadline: float, stop: threading.Event | None
) -> bool:
    """Read both streams to their end; False if the deadline came first.

    Raises:
        KeyboardInterrupt: it was to stop.
    """
    with selectors.DefaultSelector() as selector:
        for stream, capture in zip(_streams(process), captures, strict=True):
            selector.register(stream, selectors.EVENT_READ, capture)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            ready = selector.select(min(left, _TICK_SECONDS))
            if not ready and process.poll() is not None:
                return True
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                key.data.take(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
    try:
        process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_GRACE_SECONDS)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _close_streams(process: subprocess.Popen[bytes]) -> None:
    for stream in _streams(process):
        stream.close()
