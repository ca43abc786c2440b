"""The parent's end of the warm process: start it, talk to it, end it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fib_tools.errors import ChildCrashedError, ChildTimeoutError
from fib_tools.host.env import child_environment, redact

__all__ = ["Setup", "Warm"]

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from fib_tools.host._sandbox_child import main; main(int(sys.argv[2]))"
)
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # a process with a pool of threads cannot be forked safely
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_START_SECONDS = 180.0
"""Importing torch and transformers from a cold disk takes most of a minute."""
_END_SECONDS = 5.0
_LOG_TAIL_BYTES = 4000
_LAST_WORDS_LENGTH = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What the warm process imports and may read."""

    preload: tuple[str, ...]
    import_paths: tuple[Path, ...]
    readable: tuple[Path, ...]
    environment: Mapping[str, str] | None = None
    """Of jobs that may use a GPU, in place of the few variables that others have."""

    def to_message(self, folder: Path) -> dict[str, Any]:
        """Turn into the first line the child reads."""
        readable = [*self.readable, *self.import_paths]
        return {
            "folder": str(folder),
            "gpu": self.environment is not None,
            "package_root": str(_PACKAGE_ROOT),
            "preload": list(self.preload),
            "import_paths": [str(path.resolve()) for path in self.import_paths],
            "readable": [str(path.resolve()) for path in readable],
        }


class Warm:
    """A started child; close it to end it and everything below it."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self._control, theirs = socket.socketpair()
        self._received = b""
        self._is_ready = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and our own code
                [sys.executable, "-I", "-c", _BOOTSTRAP, str(_PACKAGE_ROOT), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=folder,
                env=child_environment(home=folder, extra={**_ENVIRONMENT, **(setup.environment or {})}),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.send(setup.to_message(folder))

    def wait_until_ready(self) -> None:
        """Return when the preloaded modules are imported.

        Raises:
            ChildCrashedError: importing them failed.
        """
        if self._is_ready:
            return
        message = self.receive(_START_SECONDS)
        if message is None:
            raise ChildTimeoutError(f"the warm process was not ready after {_START_SECONDS:.0f} s")
        if message["event"] == "failed":
            raise ChildCrashedError(f"the warm process cannot start: {message['type']}: {message['message']}")
        self._is_ready = True

    def send(self, message: dict[str, Any], channel: socket.socket | None = None) -> None:
        """Send one message, and a socket with it; a dead child shows at the next receive."""
        data = json.dumps(message).encode() + b"\n"
        with suppress(BrokenPipeError, ConnectionResetError):
            if channel is not None:
                data = data[socket.send_fds(self._control, [data], [channel.fileno()]) :]
            self._control.sendall(data)

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """Wait for the next message; None when the time is over.

        Raises:
            ChildCrashedError: the warm process is gone.
        """
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            self._control.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._control.recv(1 << 16)
            except TimeoutError:
                return None
            except ConnectionResetError:
                data = b""
            if not data:
                raise self._death()
            self._received += data
        self._control.settimeout(None)
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """End the child and all it started, in a bounded time."""
        self._control.close()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._log.close()

    def _death(self) -> ChildCrashedError:
        words = self._last_words()
        what = f"the warm process of the sandbox died{': ' if words else ''}{words}"
        if self._is_ready:
            return ChildCrashedError(what, todo="run it again, with more memory if the kernel ended it for want of it")
        todo = "give this machine or container more memory and the usual rights (Docker's default capabilities)"
        return ChildCrashedError(what, where="start of the sandbox", todo=todo)

    def _last_words(self) -> str:
        """Read the last line it wrote: of a traceback, the exception."""
        size = os.fstat(self._log.fileno()).st_size
        tail = os.pread(self._log.fileno(), _LOG_TAIL_BYTES, max(0, size - _LOG_TAIL_BYTES))
        return redact(tail.decode(errors="replace")).strip().rpartition("\n")[2][:_LAST_WORDS_LENGTH]
