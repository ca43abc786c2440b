"""Untrusted or hungry Python in a child that the kernel confines.

One warm process imports what jobs need; each job is a fork of it, so that a job costs milliseconds, starts from a clean
state and leaves none behind. The job's function stands in our code, takes a dict and returns a dict; between the
processes both are JSON.

What is not promised: the function shares its process with the untrusted code it calls, so the value is that code's
claim (bounded, and about its own job only). The scratch folder is limited per file, not in total.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.errors import ChildCrashedError, ChildError, ChildTimeoutError, JobRaisedError
from fib_tools.host._sandbox_answer import Outcome, RunningJob, read_outcome
from fib_tools.host._sandbox_warm import Setup, Warm
from fib_tools.host.confinement import Limits, Protections
from fib_tools.host.sandbox_folder import make_folder, sweep_folders

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Limits", "Outcome", "Protections", "Sandbox", "Session"]

_IMPORT_SECONDS = 180.0
"""Time for the warm process to import a job's module and fork; the job's own clock starts after that."""
_KILL_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 3600.0
_DEFAULT_LIMITS = Limits()


class Sandbox:
    """A warm process and its jobs; use it as a context manager, from one thread."""

    def __init__(
        self,
        preload: tuple[str, ...] = (),
        *,
        limits: Limits = _DEFAULT_LIMITS,
        import_paths: tuple[Path, ...] = (),
        readable: tuple[Path, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """With an `environment`, jobs may use the GPUs that it shows them (`Limits.gpu`)."""
        self._setup = Setup(preload=preload, import_paths=import_paths, readable=readable, environment=environment)
        self._limits = limits
        self._folder: Path | None = None
        self._held = -1
        """The folder, open and locked for as long as it is in use."""
        self._warm: Warm | None = None
        self._running: dict[int, RunningJob] = {}
        self._pids: dict[int, int] = {}
        """Of jobs that have started."""
        self._channels: dict[int, socket.socket] = {}
        """Our ends, of sessions that nobody has closed."""
        self._finished: dict[int, Outcome] = {}
        self._forgotten: set[int] = set()
        """Sessions that were told to end and whose outcome nobody asks for."""
        self._jobs = 0
        self.protections: Protections | None = None
        """Of the job that started last."""

    def __enter__(self) -> Self:
        sweep_folders()
        self._folder, self._held = make_folder()
        self._warm = Warm(self._setup, self._folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop_warm()
        for channel in self._channels.values():
            channel.close()
        for job in self._running.values():
            job.close()
        self._running.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._held)

    def run(self, entry: str, payload: dict[str, Any], *, limits: Limits | None = None) -> dict[str, Any]:
        """Run `module:function` on the payload in a fork of its own.

        Raises:
            ChildTimeoutError: it ran past its wall time, and its process group was killed.
            ChildMemoryError: it asked for more memory than its limit.
            JobRaisedError: it raised; a FibError is raised here again as its own class.
            ChildCrashedError: it died, or its answer is missing, malformed or too large.
        """
        outcome = next(iter(list(self.run_many(entry, [payload], jobs=1, limits=limits))))
        if outcome.error is not None:
            raise outcome.error
        return outcome.value or {}

    def run_many(
        self, entry: str, payloads: Iterable[dict[str, Any]], *, jobs: int = 2, limits: Limits | None = None
    ) -> Iterator[Outcome]:
        """Run one job for each payload, up to `jobs` at a time; outcomes come in the order of completion.

        Closing the iterator early kills what still runs.
        """
        waiting = enumerate(payloads)
        mine: set[int] = set()
        exhausted = False
        try:
            while True:
                while len(mine) < jobs and not exhausted:
                    position, payload = next(waiting, (-1, {}))
                    exhausted = position < 0
                    if not exhausted:
                        mine.add(self._start(entry, payload, index=position, limits=limits or self._limits))
                if not mine:
                    return
                while not (done := mine & self._finished.keys()):
                    self._advance()
                for job in sorted(done):
                    mine.discard(job)
                    yield self._finished.pop(job)
        finally:
            self._abandon(mine)

    def open_session(self, entry: str, payload: dict[str, Any], *, limits: Limits | None = None) -> Session:
        """Start `module:function` in a fork of its own with the payload and a socket to talk through."""
        ours, theirs = socket.socketpair()
        with theirs:
            number = self._start(entry, payload, index=0, limits=limits or self._limits, channel=theirs)
        self._channels[number] = ours
        return Session(self, number, ours)

    def find_session_pid(self, number: int) -> int | None:
        """Find a session's process id (in its own namespace where it has one); None before it has started."""
        while number in self._running and number not in self._pids:
            self._advance()
        return self._pids.get(number)

    def find_protections(self, number: int) -> Protections | None:
        """Find what is active around a session."""
        self.find_session_pid(number)
        job = self._running.get(number)
        return job.protections if job else None

    def close_session(self, number: int) -> Outcome:
        """End a session, and say how it ended."""
        job = self._running.get(number)
        if job is not None and self._warm is not None:
            job.deadline = time.monotonic() + _KILL_SECONDS
            self._warm.send({"kill": number})
        while number not in self._finished:
            self._advance()
        self._channels.pop(number).close()
        return self._finished.pop(number)

    def forget_session(self, number: int) -> None:
        """End a session, and wait for nothing: a process with much memory of a GPU takes half a second to go."""
        job = self._running.get(number)
        self._channels.pop(number).close()
        if job is None or self._warm is None:
            self._finished.pop(number, None)
            return
        self._forgotten.add(number)
        job.deadline = math.inf
        self._warm.send({"kill": number})

    def wait_for_session(self, number: int) -> None:
        """Wait until a session that was told to end has gone, for a few seconds at most."""
        until = time.monotonic() + _KILL_SECONDS
        while number in self._running and time.monotonic() < until:
            message = self._warm.receive(until - time.monotonic()) if self._warm else None
            if message is not None:
                self._handle(message)

    def _start(
        self,
        entry: str,
        payload: dict[str, Any],
        *,
        index: int,
        limits: Limits,
        channel: socket.socket | None = None,
    ) -> int:
        if self._folder is None:
            raise RuntimeError("a Sandbox is used as a context manager")
        if self._warm is None:
            self._warm = Warm(self._setup, self._folder)
        self._warm.wait_until_ready()
        self._jobs += 1
        job = RunningJob(self._folder / str(self._jobs), payload, index=index, limits=limits)
        job.is_session = channel is not None
        job.deadline = math.inf if job.is_session else time.monotonic() + _IMPORT_SECONDS
        self._running[self._jobs] = job
        message = {"job": self._jobs, "entry": entry, "limits": asdict(limits), **job.paths()}
        self._warm.send({**message, "session": True} if channel else message, channel)
        return self._jobs

    def _advance(self) -> None:
        """Wait for the next event or deadline, and act on it."""
        soonest = min(job.deadline for job in self._running.values())
        try:
            seconds = min(max(0.0, soonest - time.monotonic()), _LONGEST_WAIT_SECONDS)
            message = self._warm.receive(seconds) if self._warm else None
        except ChildCrashedError as error:
            self._lose_all(error)
            return
        if message is not None:
            self._handle(message)
        self._enforce_deadlines()

    def _handle(self, message: dict[str, Any]) -> None:
        number = message["job"]
        job = self._running.get(number)
        if job is None:
            return
        if message["event"] == "started":
            job.begin(message["protections"])
            self._pids[number] = message["pid"]
            self.protections = job.protections
        elif message["event"] == "refused":
            reason = JobRaisedError(message["type"], message["message"], line="")
            self._finish(number, job.to_outcome(error=reason))
        else:
            self._finish(number, read_outcome(job, message["status"]))

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        late = [(number, job) for number, job in self._running.items() if job.deadline <= now]
        for number, job in late:
            if job.is_killed:
                self._lose_all(ChildCrashedError("the warm process of the sandbox did not obey"))
                return
            job.is_killed = True
            job.deadline = now + _KILL_SECONDS
            if self._warm is not None:
                self._warm.send({"kill": number})

    def _finish(self, number: int, outcome: Outcome) -> None:
        self._running.pop(number).close()
        self._pids.pop(number, None)
        if number in self._forgotten:
            self._forgotten.discard(number)
        else:
            self._finished[number] = outcome

    def _lose_all(self, error: ChildError) -> None:
        self._drop_warm()
        for number, job in list(self._running.items()):
            late = ChildTimeoutError(f"the job ran past {job.limits.wall_seconds:g} s") if job.is_killed else error
            self._finish(number, job.to_outcome(error=late))

    def _abandon(self, jobs: set[int]) -> None:
        """Kill jobs whose outcome nobody waits for any more."""
        for number in jobs:
            job = self._running.get(number)
            if job is not None and self._warm is not None:
                job.is_killed = True
                job.deadline = time.monotonic() + _KILL_SECONDS
                self._warm.send({"kill": number})
        while jobs & self._running.keys():
            self._advance()
        for number in jobs:
            self._finished.pop(number, None)

    def _drop_warm(self) -> None:
        if self._warm is not None:
            warm, self._warm = self._warm, None
            warm.close()


class Session:
    """A job that is talked with: what passes through its channel is for the two ends to agree on."""

    def __init__(self, sandbox: Sandbox, number: int, channel: socket.socket) -> None:
        self._sandbox = sandbox
        self._number = number
        self._outcome: Outcome | None = None
        self._is_forgotten = False
        self.channel = channel

    @property
    def pid(self) -> int | None:
        """Its process id; waits for its start."""
        return self._sandbox.find_session_pid(self._number)

    @property
    def protections(self) -> Protections | None:
        """What is active around it."""
        return self._sandbox.find_protections(self._number)

    def close(self) -> Outcome:
        """Kill it, unless it has ended, and say how it ended."""
        if self._outcome is None:
            self.channel.close()
            self._outcome = self._sandbox.close_session(self._number)
        return self._outcome

    def forget(self) -> None:
        """Kill it, unless it has ended; nothing of it is asked for any more."""
        if self._outcome is None and not self._is_forgotten:
            self._is_forgotten = True
            self._sandbox.forget_session(self._number)

    def wait(self) -> None:
        """Wait until it has gone, after it was forgotten."""
        self._sandbox.wait_for_session(self._number)
