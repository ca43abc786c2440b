"""One job as the parent sees it: its files, its clock, and what its answer means."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fib_tools.errors
from fib_tools.errors import ChildCrashedError, ChildMemoryError, ChildTimeoutError, FibError, JobRaisedError
from fib_tools.host.confinement import Limits, Protections
from fib_tools.host.env import redact

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Outcome", "RunningJob", "read_outcome"]

_OUTPUT_BYTES = 64 << 10
"""The end of what a job printed is enough to explain it."""
_MESSAGE_LENGTH = 4000


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one job ended: with a value, or with an error."""

    index: int
    """Position of its payload."""
    value: dict[str, Any] | None
    error: FibError | None
    output: str
    """The end of what it printed, both streams."""
    seconds: float
    protections: Protections | None
    """None if it never started."""


class RunningJob:
    """The files of a job, and the time it has left."""

    def __init__(self, folder: Path, payload: dict[str, Any], *, index: int, limits: Limits) -> None:
        self.index = index
        self.limits = limits
        self.deadline = 0.0
        self.is_killed = False
        self.is_session = False
        """Who talks with it keeps the time."""
        self.protections: Protections | None = None
        self._begun: float | None = None
        self._folder = folder
        self._paths = {name: folder / name for name in ("payload", "answer", "output")}
        (folder / "scratch").mkdir(parents=True, mode=0o700)
        self._paths["payload"].write_bytes(json.dumps(payload).encode())
        flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL
        self._answer = os.open(self._paths["answer"], flags, 0o600)
        self._output = os.open(self._paths["output"], flags, 0o600)

    def paths(self) -> dict[str, str]:
        """Name the files for the warm process, which unlinks them before the job can see them."""
        return {"scratch": str(self._folder / "scratch"), **{name: str(path) for name, path in self._paths.items()}}

    def begin(self, protections: dict[str, bool]) -> None:
        """Start the job's clock."""
        self.protections = Protections(**protections)
        self._begun = time.monotonic()
        if not self.is_killed and not self.is_session:
            self.deadline = self._begun + self.limits.wall_seconds

    def to_outcome(self, *, value: dict[str, Any] | None = None, error: FibError | None = None) -> Outcome:
        """Close the account."""
        seconds = 0.0 if self._begun is None else time.monotonic() - self._begun
        size = os.fstat(self._output).st_size
        tail = os.pread(self._output, _OUTPUT_BYTES, max(0, size - _OUTPUT_BYTES))
        return Outcome(
            index=self.index,
            value=value,
            error=error,
            output=redact(tail.decode(errors="replace")),
            seconds=seconds,
            protections=self.protections,
        )

    def read_answer(self) -> bytes | None:
        """Read the answer; None if it is over its limit."""
        size = os.fstat(self._answer).st_size
        if size > self.limits.answer_bytes:
            return None
        with open(self._answer, "rb", closefd=False) as stream:
            return stream.read(size)

    def close(self) -> None:
        """Remove all that the job left on disk."""
        os.close(self._answer)
        os.close(self._output)
        shutil.rmtree(self._folder, ignore_errors=True)


def read_outcome(job: RunningJob, status: int) -> Outcome:
    """Judge a job by its exit status and the answer it left."""
    if job.is_killed:
        late = ChildTimeoutError(
            f"the job ran past {job.limits.wall_seconds:g} s", todo="make it smaller or raise the wall time"
        )
        return job.to_outcome(error=late)
    if status < 0:
        return job.to_outcome(error=ChildCrashedError(f"the job was killed by {_signal_name(-status)}"))
    data = job.read_answer()
    if data is None:
        return job.to_outcome(error=ChildCrashedError(f"the job's answer is over {job.limits.answer_bytes} bytes"))
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return job.to_outcome(error=ChildCrashedError(f"the job exited with status {status} without an answer"))
    return _interpret(job, answer)


def _interpret(job: RunningJob, answer: Any) -> Outcome:
    match answer:
        case {"value": dict() as value}:
            return job.to_outcome(value=value)
        case {"error": {"fib": str() as name, "what": str() as what, "where": where, "todo": todo}}:
            return job.to_outcome(error=_fib_error(name, what, where=where, todo=todo))
        case {"error": {"type": str(), "memory": True}}:
            limit = f"{job.limits.memory_bytes / (1 << 30):.1f} GiB"
            return job.to_outcome(error=ChildMemoryError(f"the job asked for more memory than its {limit}"))
        case {"error": {"type": str() as name, "message": str() as message, "line": str() as line}}:
            return job.to_outcome(error=JobRaisedError(_bounded(name), _bounded(message), line=_bounded(line)))
        case {"too_large": int() as size}:
            what = f"the job's answer of {size} bytes is over the limit of {job.limits.answer_bytes}"
            return job.to_outcome(error=ChildCrashedError(what))
    return job.to_outcome(error=ChildCrashedError("the job's answer is not a JSON object"))


def _fib_error(name: str, what: str, *, where: Any, todo: Any) -> FibError:
    found = getattr(fib_tools.errors, name, None) if name in fib_tools.errors.__all__ else None
    kind = found if isinstance(found, type) and issubclass(found, FibError) else ChildCrashedError
    error = kind.__new__(kind)
    # some classes build their text from other arguments; what they built is what arrives
    FibError.__init__(
        error,
        _bounded(what),
        where=_bounded(where) if isinstance(where, str) else None,
        todo=_bounded(todo) if isinstance(todo, str) else None,
    )
    return error


def _bounded(text: str) -> str:
    return redact(text[:_MESSAGE_LENGTH])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
