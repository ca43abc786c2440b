"""Long work as jobs: each is a child process with a folder of its own, which outlives the server that started it.

WORKSPACE/jobs/<id>/
    lock           held by the child as long as it lives: no other sign of life is trusted
    request.json   what was asked, without secrets
    pid            the child's, written by itself
    log.txt        progress, one line a step
    result.json    what it found
    outcome.json   how it ended; there once it did
    stderr.txt     what a crash left; never sent to a caller
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from threading import Thread

from fib_tools.errors import ChildError, FibError, FormatError, RequestError
from fib_tools.host.env import redact_values
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.host.paths import check_component, confine
from fib_tools.model.base import to_document
from fib_tools.model.canonical import canonical_bytes
from fib_tools.tools.answer import Whole
from fib_tools.tools.job import Failure, Job, JobState
from fib_tools.tools.job_files import (
    JobRequest,
    Outcome,
    load_outcome,
    load_request,
    load_result,
    read_log,
    save_outcome,
)

__all__ = ["Jobs"]

_KEPT = 100
"""Finished jobs whose folders stay."""
_DIED = Failure(
    error="ChildCrashedError",
    what="the job was killed before it ended",
    next="call the tool again: it goes on where it stopped",
)
_POLL_SECONDS = 0.03
_GRACE_SECONDS = 5.0
"""From asking a job to end to ending it."""


class Jobs:
    """The jobs of a workspace."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def start(self, request: JobRequest) -> str:
        """Start a job and return its id at once; one that runs with the same request already is returned instead.

        Raises:
            StorageError: the disk refuses.
        """
        shown = JobRequest.model_validate(redact_values(to_document(request)))
        twin = self._find_twin(shown)
        if twin is not None:
            return twin
        self._prune()
        stamp = request.created.astimezone(timezone.utc).strftime("%Y%m%d-%H%M%S")
        job_id = f"{request.verb}-{stamp}-{secrets.token_hex(2)}"
        folder = confine(self._root, "jobs", job_id)
        with storage_errors(folder):
            folder.mkdir(parents=True)
        with storage_errors(folder), (folder / "lock").open("wb") as lock, tempfile.TemporaryFile() as whole:
            # the child is born with the lock, so there is no moment at which it lives without it
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_atomically(folder / "request.json", canonical_bytes(shown))
            whole.write(canonical_bytes(request))
            whole.seek(0)
            with (folder / "stderr.txt").open("wb") as errors:
                child = subprocess.Popen(  # noqa: S603  # our own module; what callers said comes in on stdin
                    [sys.executable, "-m", "fib_tools.tools.run_job", str(folder), str(lock.fileno())],
                    stdin=whole,
                    stdout=errors,
                    stderr=errors,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )
        Thread(target=child.wait, daemon=True, name=job_id).start()  # reaps it, whenever it ends
        return job_id

    def get(self, job_id: str) -> Job:
        """Say where a job stands.

        Raises:
            RequestError: there is no such job.
            FormatError: its files are damaged.
        """
        folder = self._find(job_id)
        request = load_request(folder)
        is_alive = self._is_alive(folder)
        outcome = load_outcome(folder)
        state: JobState
        if outcome is not None:
            state, seconds, failure = outcome.state, outcome.seconds, outcome.failure
        elif is_alive:
            age = (datetime.now(timezone.utc) - request.created).total_seconds()
            state, seconds, failure = JobState.RUNNING, max(age, 0.0), None
        else:
            state, seconds, failure = JobState.DIED, 0.0, _DIED
        return Job(
            job_id=job_id,
            tool=request.tool,
            state=state,
            created=request.created,
            seconds=round(seconds, 1),
            failure=failure,
        )

    def list_jobs(self) -> tuple[Job, ...]:
        """List the jobs, newest first; one whose files are damaged is left out."""
        jobs = []
        for job_id in self._ids():
            with suppress(FibError):
                jobs.append(self.get(job_id))
        return tuple(sorted(jobs, key=lambda job: job.order, reverse=True))

    def wait(self, job_id: str, seconds: float, *, is_wanted: Callable[[], bool] = lambda: True) -> Iterator[str]:
        """Wait for a job's end at most so long, and as long as it is wanted, with each new line of its log."""
        folder = self._find(job_id)
        deadline = time.monotonic() + seconds
        offset = 0
        while True:
            is_over = not self._is_alive(folder) or time.monotonic() >= deadline or not is_wanted()
            lines, offset = read_log(folder, offset)
            yield from lines
            if is_over:
                return
            time.sleep(_POLL_SECONDS)

    def log(self, job_id: str) -> tuple[str, ...]:
        """Read a job's progress."""
        return read_log(self._find(job_id), 0)[0]

    def result(self, job_id: str) -> Whole | None:
        """Read what a job found; None while it runs, and for one that found nothing."""
        return load_result(self._find(job_id))

    def cancel(self, job_id: str) -> Job:
        """End a job as Ctrl-C would; what it finished is kept. One that has ended is left as it is.

        Raises:
            RequestError: there is no such job.
            ChildError: its process cannot be found.
        """
        folder = self._find(job_id)
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._is_alive(folder) and not _signal(folder, signal.SIGTERM):
            if time.monotonic() >= deadline:
                raise ChildError("the process of the job is not found", where=str(folder / "pid"), todo="let it end")
            time.sleep(_POLL_SECONDS)  # it has not written its number yet
        for number in (signal.SIGKILL, None):
            for _ in self.wait(job_id, _GRACE_SECONDS):
                pass
            if number is not None and self._is_alive(folder):
                _signal(folder, number)
        if load_outcome(folder) is None and not self._is_alive(folder):
            save_outcome(folder, Outcome(state=JobState.CANCELLED, seconds=0))
        return self.get(job_id)

    def _find_twin(self, request: JobRequest) -> str | None:
        for job_id in self._ids():
            with suppress(FibError):
                folder = self._find(job_id)
                if self._is_alive(folder) and load_request(folder).is_like(request):
                    return job_id
        return None

    def _is_alive(self, folder: Path) -> bool:
        try:
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not see each other
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _find(self, job_id: str) -> Path:
        folder = confine(self._root, "jobs", check_component(job_id))
        if not (folder / "request.json").is_file():
            raise RequestError(f"there is no job {job_id[:80]!r}", todo="list them: fib_get_job without job_id")
        return folder

    def _ids(self) -> list[str]:
        return [path.parent.name for path in confine(self._root, "jobs").glob("*/request.json")]

    def _prune(self) -> None:
        """Remove the folders of jobs that ended long ago."""
        with suppress(OSError):
            folders = sorted(self._ids(), key=lambda job_id: self._find(job_id).stat().st_mtime, reverse=True)
            for job_id in folders[_KEPT:]:
                folder = self._find(job_id)
                if not self._is_alive(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _signal(folder: Path, number: signal.Signals) -> bool:
    """Signal the process group of a job, if the process of that number is the job's; tell whether it was."""
    try:
        pid = int(read_limited(folder / "pid", 32))
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if pid > 1 and os.fsencode(folder) in command and os.getpgid(pid) == pid:
            os.killpg(pid, number)
            return True
    except (FormatError, ValueError, OSError):
        return False
    return False
