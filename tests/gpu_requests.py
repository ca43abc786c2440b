"""Processes that ask for GPUs, for tests of the lock: what they say is read from a pipe, and they end when their input does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

__all__ = ["HOLD", "Asker"]

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from fib_tools.host.gpu_lock import acquire
from fib_tools.host.gpu_run import run_on_gpus
count, limit, grace, *command = sys.argv[2:]
said = []
def report(waiting):
    if waiting.position not in said:
        said.append(waiting.position)
        print("waiting", waiting.position, flush=True)
with acquire(int(count), command=" ".join(command), report=report) as lease:
    sys.exit(run_on_gpus(lease, command, exec_timeout=float(limit) if limit else None, grace=float(grace)))
"""
HOLD = ("sh", "-c", "echo $$ $CUDA_VISIBLE_DEVICES; read line; exit 0")
"""Tell its process id and GPUs, and hold them until a line comes or the input ends."""


class Asker:
    """A wrapper in a process of its own, as `fib gpu-lock` is one."""

    def __init__(
        self,
        count: int,
        command: tuple[str, ...] = HOLD,
        *,
        limit: float | None = None,
        grace: float = 10.0,
        environment: dict[str, str] | None = None,
    ) -> None:
        words = [str(ROOT), str(count), "" if limit is None else str(limit), str(grace), *command]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> str:
        """Read the next line of it or its command."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def release(self) -> int:
        """Let its command end; return the exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(timeout=30)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()  # with its input, its command ends
