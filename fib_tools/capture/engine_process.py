"""One engine as a tree of processes: started with an explicit environment, followed, and ended as a whole."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fib_tools.host.files import storage_errors
from fib_tools.host.process_tree import list_descendants, list_processes

__all__ = ["EngineProcess"]

_GRACE_SECONDS = 5.0
"""From SIGTERM to SIGKILL."""
_MARK = "FIB_ENGINE_RUN"
"""A variable that every process of one engine inherits, and no other process has."""
_LONGEST_LINE = 1 << 16


class EngineProcess:
    """A child in a process group of its own; processes that left the group are found by their environment."""

    def __init__(
        self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], descriptors: Sequence[int] = ()
    ) -> None:
        self._mark = secrets.token_hex(16)
        self._log = folder / "engine.log"
        self._progress = folder / "progress.jsonl"
        self._read = 0
        with storage_errors(self._log), self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own child; no shell
                list(command),
                cwd=folder,
                env={**environment, _MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=tuple(descriptors),
            )

    def poll(self) -> int | None:
        """Give the exit status; None while it runs."""
        return self._process.poll()

    def read_progress(self) -> list[dict[str, Any]]:
        """Read the lines that the child has written since; half a line waits for its other half."""
        if not self._progress.exists():
            return []
        with self._progress.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        found = []
        for line in whole.splitlines():
            with suppress(ValueError):
                entry = json.loads(line[:_LONGEST_LINE])
                found += [entry] if isinstance(entry, dict) else []
        return found

    def read_log(self, most_bytes: int) -> str:
        """Read the end of what the engine said."""
        if not self._log.exists():
            return ""
        with self._log.open("rb") as stream:
            stream.seek(max(0, self._log.stat().st_size - most_bytes))
            return stream.read(most_bytes).decode("utf-8", errors="replace")

    def end(self) -> None:
        """End the whole tree: SIGTERM, a while of grace, SIGKILL; do nothing where nothing is left."""
        # a process that gives itself a title may overwrite its mark
        family = list_descendants([self._process.pid], list_processes())
        if self._process.poll() is None:
            self._signal_group(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_GRACE_SECONDS)
        deadline = time.monotonic() + _GRACE_SECONDS
        self._signal_group(signal.SIGKILL)
        while (strays := self._find_strays(family)) and time.monotonic() < deadline:
            for pid in strays:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self._process.wait()

    def _signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _find_strays(self, family: Collection[int]) -> list[int]:
        """Find what is left of the family, and the processes that carry this engine's mark, wherever they have moved to."""
        wanted = f"{_MARK}={self._mark}".encode()
        living = list_processes()
        found = [pid for pid in family if pid in living]
        for pid in living:
            with suppress(OSError):
                if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found
