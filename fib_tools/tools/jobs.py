"""Long work as jobs: each is a child process with a folder of its own, which outlives the server that started it.

WORKSPACE/jobs/<id>/
    request.json   what was asked
    log.txt        progress, one line a step
    outcome.json   how it ended; there once it did
    stderr.txt     what a crash left; never sent to a caller
    lock           held by the child as long as it lives: no other sign of life is trusted
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from threading import Thread
from typing import Any

from fib_tools.errors import FibError, FormatError, RequestError
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.host.paths import check_component
from fib_tools.model.base import Model, read_strict
from fib_tools.model.canonical import canonical_bytes, load_json
from fib_tools.tools.answer import Whole
from fib_tools.tools.job import Failure, Job, JobState

__all__ = ["JobRequest", "Jobs", "Outcome", "load_request", "save_outcome"]

_DOCUMENT_BYTES = 64 << 20
_LOG_BYTES = 4 << 20
_KEPT = 100
"""Finished jobs whose folders stay."""
_DIED = Failure(
    error="ChildCrashedError",
    what="the job ended without an outcome",
    next="call the tool again: it goes on where it stopped; stderr.txt in the job's folder has what a crash left",
)
_POLL_SECONDS = 0.03
_GRACE_SECONDS = 5.0
"""From asking a job to end to ending it."""


class JobRequest(Model):
    """What a job is to do, and where."""

    version: int = 1
    tool: str
    verb: str
    arguments: dict[str, Any]
    workspace: str
    dataset: str | None = None
    offline: bool = False
    created: str
    """UTC, in seconds."""


class Outcome(Model):
    """How a job ended."""

    version: int = 1
    state: JobState
    seconds: float
    failure: Failure | None = None
    result: Whole | None = None


class Jobs:
    """The jobs of a workspace."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, request: JobRequest) -> str:
        """Start a job and return its id at once.

        Raises:
            StorageError: the disk refuses.
        """
        self._prune()
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        job_id = f"{request.verb}-{stamp}-{secrets.token_hex(2)}"
        folder = self._folder / job_id
        with storage_errors(folder):
            folder.mkdir(parents=True)
        write_atomically(folder / "request.json", canonical_bytes(request))
        with storage_errors(folder), (folder / "lock").open("wb") as lock, (folder / "stderr.txt").open("wb") as errors:
            # the child is born with the lock, so there is no moment at which it lives without it
            fcntl.flock(lock, fcntl.LOCK_EX)
            child = subprocess.Popen(  # noqa: S603  # our own module; what callers said is in request.json
                [sys.executable, "-m", "fib_tools.tools.run_job", str(folder), str(lock.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
        write_atomically(folder / "pid", str(child.pid).encode())
        Thread(target=child.wait, daemon=True, name=job_id).start()  # reaps it, whenever it ends
        return job_id

    def get(self, job_id: str) -> Job:
        """Say where a job stands.

        Raises:
            RequestError: there is no such job.
        """
        folder = self._find(job_id)
        request = load_request(folder)
        is_alive = self._is_alive(job_id)
        outcome = _load_outcome(folder)
        state = outcome.state if outcome else JobState.RUNNING if is_alive else JobState.DIED
        seconds = outcome.seconds if outcome else _age(request) if is_alive else 0.0
        return Job(
            job_id=job_id,
            tool=request.tool,
            state=state,
            created=request.created,
            seconds=round(seconds, 1),
            failure=outcome.failure if outcome else _DIED if state is JobState.DIED else None,
        )

    def list_jobs(self) -> tuple[Job, ...]:
        """List the jobs, newest first; one whose folder cannot be read is left out."""
        jobs = []
        for job_id in self._ids():
            with suppress(FibError):
                jobs.append(self.get(job_id))
        return tuple(sorted(jobs, key=lambda job: (job.created, job.job_id), reverse=True))

    def wait(self, job_id: str, seconds: float) -> Iterator[str]:
        """Wait for a job's end at most so long, with each new line of its log."""
        folder = self._find(job_id)
        deadline = time.monotonic() + seconds
        seen = 0
        while True:
            is_alive = self._is_alive(job_id)
            lines = read_log(folder)
            yield from lines[seen:]
            seen = max(seen, len(lines))
            if not is_alive or time.monotonic() >= deadline:
                return
            time.sleep(_POLL_SECONDS)

    def log(self, job_id: str) -> tuple[str, ...]:
        """Read a job's progress."""
        return read_log(self._find(job_id))

    def outcome(self, job_id: str) -> Outcome | None:
        """Read how a job ended; None while it runs, and for one that died."""
        return _load_outcome(self._find(job_id))

    def cancel(self, job_id: str) -> Job:
        """End a job as Ctrl-C would; what it finished is kept. One that has ended is left as it is."""
        folder = self._find(job_id)
        self._signal(job_id, folder, signal.SIGTERM)
        for _ in self.wait(job_id, _GRACE_SECONDS):
            pass
        self._signal(job_id, folder, signal.SIGKILL)
        for _ in self.wait(job_id, _GRACE_SECONDS):
            pass
        if _load_outcome(folder) is None and not self._is_alive(job_id):
            save_outcome(folder, Outcome(state=JobState.CANCELLED, seconds=0))
        return self.get(job_id)

    def _signal(self, job_id: str, folder: Path, number: signal.Signals) -> None:
        """Signal the job's process group, if it lives: the lock tells that the number is still its own."""
        if self._is_alive(job_id):
            pid = int(read_limited(folder / "pid", 32))
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)

    def _is_alive(self, job_id: str) -> bool:
        try:
            with (self._folder / job_id / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not see each other
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _find(self, job_id: str) -> Path:
        folder = self._folder / check_component(job_id)
        if not (folder / "request.json").is_file():
            raise RequestError(f"there is no job {job_id!r}", where=str(self._folder), todo="list them: fib_get_job")
        return folder

    def _ids(self) -> list[str]:
        return [path.parent.name for path in self._folder.glob("*/request.json")]

    def _prune(self) -> None:
        """Remove the folders of jobs that ended long ago."""
        ended = [job for job in self.list_jobs() if job.state is not JobState.RUNNING]
        for job in ended[_KEPT:]:
            shutil.rmtree(self._folder / job.job_id, ignore_errors=True)


def load_request(folder: Path) -> JobRequest:
    """Read what a job is to do."""
    path = folder / "request.json"
    return read_strict(JobRequest, load_json(read_limited(path, _DOCUMENT_BYTES), where=str(path)), where=str(path))


def save_outcome(folder: Path, outcome: Outcome) -> None:
    """Write how a job ended."""
    write_atomically(folder / "outcome.json", canonical_bytes(outcome))


def _load_outcome(folder: Path) -> Outcome | None:
    path = folder / "outcome.json"
    if not path.is_file():
        return None
    return read_strict(Outcome, load_json(read_limited(path, _DOCUMENT_BYTES), where=str(path)), where=str(path))


def read_log(folder: Path) -> tuple[str, ...]:
    """Read a job's log; a line that is still being written is left for the next time."""
    try:
        text = read_limited(folder / "log.txt", _LOG_BYTES).decode("utf-8", "replace")
    except FormatError:
        return ()
    return tuple(text.rpartition("\n")[0].splitlines())


def _age(request: JobRequest) -> float:
    return (datetime.now(timezone.utc) - datetime.fromisoformat(request.created)).total_seconds()
