"""A runner as the judge sees it: a confined process that builds one Solution, or a reference, and calls it on command."""

from __future__ import annotations

import math
import os
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fib_tools.errors import ChildCrashedError, ChildTimeoutError
from fib_tools.evaluate.judge.arena import Arena
from fib_tools.evaluate.judge.channel import Channel
from fib_tools.evaluate.judge.refusal import RefusedError
from fib_tools.host.cpu import read_memory_bytes
from fib_tools.host.env import kernel_caches, redact
from fib_tools.host.process_tree import read_cpu_seconds
from fib_tools.host.sandbox import Limits, Sandbox
from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition
from fib_tools.model.solution import BASELINE, Solution
from fib_tools.model.trace import EvaluationStatus

__all__ = ["ENTRY", "PRELOAD", "Runner", "choose_connections", "limit_runner", "read_numbers"]

ENTRY = "fib_tools.evaluate._runner.session:serve"
PRELOAD = ("fib_tools.evaluate._runner.warm", "fib_tools.evaluate._runner.session")
_TELL_BYTES = 1 << 14
_DETAIL_LENGTH = 3000
_LOG_LINES = 30
_FILE_BYTES = 1 << 30
"""Of one file: a compiled library."""
_IDLE_SECONDS, _IDLE_SHARE = 0.1, 0.01
"""What a process may compute while it waits, and of a long wait this share: the driver's own threads wake up now and then."""
_LOST = ("CUDA error", "CUDA driver error", "device-side assert")
_WORD_LENGTH, _MOST_LIBS = 60, 20
_OWN_SHARE = 0.5
"""Of the time of a build, or of a first call, that is left at its turn, at least: before, it had the machine together with
others."""
_LATE = "it did not answer"
_PART_SECONDS = 10.0
"""For the rest of a message whose beginning has come."""
_MEMORY_BYTES = 32 << 30
_MEMORY_SHARE = 0.75
"""Of the machine's memory one runner may take at most."""
_PROCESSES = 512
"""Compilers are run beside the Solution."""
_OPEN_FILES = 1024


def choose_connections(solution: Solution | None) -> int | None:
    """Choose how many queues to the device a context has; None leaves that to the driver, which takes eight.

    A context with one is made in half the time (0.06 s in place of 0.11 s on an H200), during which the driver holds up
    every process of the machine. What never names a stream has no use for more; baselines' libraries may.
    """
    if solution is not None and solution.author == BASELINE:
        return None
    sources = solution.sources if solution is not None else ()
    return None if any("stream" in source.content.lower() for source in sources) else 1


def limit_runner(*, device: str, seconds: float, writable: tuple[str, ...] = ()) -> Limits:
    """Say what a process that calls a Solution may use."""
    return Limits(
        wall_seconds=seconds,
        memory_bytes=min(_MEMORY_BYTES, int(read_memory_bytes() * _MEMORY_SHARE)),
        file_bytes=_FILE_BYTES,
        open_files=_OPEN_FILES,
        processes=_PROCESSES,
        writable=writable,
        gpu=device != "cpu",
    )


class Runner:
    """One process. What goes wrong in it raises RefusedError; after a crash or a timeout it is `is_dead`."""

    def __init__(  # noqa: PLR0913  # what a process may do and sees is said where it is made
        self,
        sandbox: Sandbox,
        definition: Definition,
        solution: Solution | None,
        *,
        device: str,
        dataset: str,
        lifetime: float,
        first_call: Mapping[str, Any],
        is_trusted: bool = False,
    ) -> None:
        """Fork it; a Solution of None is the Definition's reference. A trusted one keeps what kernel libraries compile.

        `first_call` says of what workload a Solution makes a call as soon as it is built, so that what compiles at the
        first call does so while others are measured; what the harness does around calls is rehearsed then too.
        """
        caches, folders = kernel_caches() if is_trusted else ({}, ())
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        payload = {
            "definition": to_document(definition),
            "solution": to_document(solution) if solution else None,
            "device": device,
            "dataset": dataset,
            "caches": caches,
            "connections": choose_connections(solution),
        }
        limits = limit_runner(device=device, seconds=lifetime, writable=tuple(map(str, folders)))
        self.name = solution.name if solution else "reference"
        self.is_dead = False
        self._session = sandbox.open_session(ENTRY, payload, limits=limits)
        self._channel = Channel(self._session.channel)
        self._told, self._tell = os.pipe()
        os.set_blocking(self._told, False)
        self._token = ""
        self._is_stopped = False
        self._is_visible = device != "cpu"
        """Its process id means the same here; on a CPU it has a namespace of its own."""
        self._idle_since = (0.0, 0.0)
        """By the clock, and what it had computed by then."""
        self._first_call = first_call
        self._owes = ""
        """What it was told to do while others are measured: `build`, then `warm`."""
        self._owes_since = 0.0
        self._failed: RefusedError | None = None
        """How it went wrong."""
        self._arena: Arena | None = None
        self._opened: set[str] = set()
        self._began = 0.0
        self.build_seconds = 0.0
        self.first_call_seconds = 0.0
        self.libs: dict[str, str] = {}
        """Versions, as it says itself."""
        self.protections: dict[str, bool] = {}

    def begin_build(self, timer: str) -> None:
        """Have it start its device and build; `finish_build` waits for that."""
        self._send({"do": "build", "timer": timer}, self._tell)
        os.close(self._tell)
        self._owes = "build"
        self._began = time.perf_counter()

    def advance(self) -> None:
        """Take the answer to a build, if it has come, and have the first call made; wait for nothing."""
        if self._owes == "build" and not self._channel.is_quiet:
            try:
                self._take_build(_PART_SECONDS)
            except RefusedError as error:
                self._failed = error

    @property
    def is_busy(self) -> bool:
        """Tell whether it does what it was told to do while others are measured."""
        return bool(self._owes) and not self._channel.wait(0.0)

    def wait_busy(self, seconds: float) -> None:
        """Wait so long for what it does meanwhile."""
        self._channel.wait(seconds)

    @property
    def failed_to_build(self) -> bool:
        """Tell whether its build went wrong while others were measured."""
        return self._failed is not None

    def finish_build(self, seconds: float) -> None:
        """Wait until it has built, until so long after its begin.

        Raises:
            RefusedError: it cannot be built, or did what it may not while its code was imported.
        """
        if self._owes == "build":
            self._take_build(_find_left(seconds, since=self._began), limit=seconds)
        elif self._failed is not None:
            raise self._failed

    def _take_build(self, seconds: float, *, limit: float | None = None) -> None:
        self._owes = ""
        answer = self._receive(seconds, failed=EvaluationStatus.COMPILE_ERROR, limit=limit)
        self.build_seconds = time.perf_counter() - self._began
        self.libs = _read_libs(answer.get("libs"))
        protections = self._session.protections
        self.protections = {name: bool(getattr(protections, name)) for name in _PROTECTIONS} if protections else {}
        self._send({"do": "warm", **self._first_call})
        self._owes, self._owes_since = "warm", time.perf_counter()

    def finish_first_call(self, seconds: float) -> None:
        """Wait for the end of the first call, whose outputs nobody compares, until so long after its begin.

        Raises:
            RefusedError: it raised, crashed, hung, or broke a rule.
        """
        if self._owes == "warm":
            self._owes = ""
            left = _find_left(seconds, since=self._owes_since)
            late = "its first call, which may compile and so has longer than others, did not end"
            spent = self._receive(left, limit=seconds, late=late).get("seconds")
            self.first_call_seconds = float(spent) if isinstance(spent, float) and 0 <= spent < math.inf else 0.0

    def take(self, arena: Arena) -> None:
        """Give it the memory for its outputs."""
        if self._arena is not arena:
            self.resume()
            message, descriptor = arena.offer()
            self._send(message, descriptor)
            self._receive(60.0)
            self._arena = arena

    def forget(self, arena: Arena) -> None:
        """Have it let go of an arena that is about to be given back."""
        if self._arena is arena and not self.is_dead:
            self._arena = None
            try:
                self.ask({"do": "drop"}, 60.0)
            except RefusedError:
                self.is_dead = True
                raise

    def open(self, workloads: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        """Open workloads, each once, under their names."""
        new = [{**message, "name": name} for name, message in workloads.items() if name not in self._opened]
        if new:
            self.ask({"do": "open", "workloads": new}, seconds)
            self._opened.update(workloads)

    def rest(self, seconds: float) -> None:
        """Have it give back the memory of calls that are over: who comes after a large workload needs it."""
        if not self.is_dead:
            self.ask({"do": "rest"}, seconds)

    def ask(self, message: dict[str, Any], seconds: float, *, late: str = _LATE) -> dict[str, Any]:
        """Have it do something, and wait for the answer; it must not be stopped. `late` says what took too long.

        Raises:
            RefusedError: it raised, crashed, hung, or broke a rule.
        """
        self.resume()
        self._send(message)
        return self._receive(seconds, late=late)

    def time(self, message: dict[str, Any], seconds: float) -> tuple[dict[str, Any], float]:
        """Do the same, and take the time with this process's own clock, in seconds."""
        self.resume()
        begun = time.perf_counter()
        self._send(message)
        answer = self._receive(seconds)
        return answer, time.perf_counter() - begun

    def stop(self) -> None:
        """Have it do nothing until its next turn.

        It is not halted by a signal: CUDA's driver has locks in memory that all processes share, and one that is halted
        with such a lock halts them all. What it computes in spite of this is seen at `resume`.
        """
        if not self._is_stopped and not self.is_dead and not self._owes:
            self._idle_since = (time.perf_counter(), self._read_cpu_seconds())
            self._is_stopped = True

    def resume(self) -> None:
        """Give it its turn.

        Raises:
            RefusedError: it computed while others had theirs.
        """
        if not self._is_stopped:
            return
        self._is_stopped = False
        since, before = self._idle_since
        spent = self._read_cpu_seconds() - before
        if spent > _IDLE_SECONDS + _IDLE_SHARE * (time.perf_counter() - since):
            detail = f"its process computed {spent:.2f} s while it was not its turn"
            raise RefusedError(EvaluationStatus.RUNTIME_ERROR, detail, rule="threads")

    def _read_cpu_seconds(self) -> float:
        """Read how long its threads have computed, from outside."""
        pid = self._session.pid
        return read_cpu_seconds(pid) if self._is_visible and pid is not None else 0.0

    def close(self) -> None:
        """End it; its process may go while others are measured."""
        self._session.forget()
        with suppress(OSError):
            os.close(self._told)

    def wait(self) -> None:
        """Wait until its process has gone, once it was ended."""
        self._session.wait()

    def _send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        """Send a request with a token that its answer must bear: an answer made up beforehand cannot know it.

        Raises:
            RefusedError: something has come that nobody asked for (`crash`).
        """
        if not self._channel.is_quiet:
            self.is_dead = True
            raise RefusedError(EvaluationStatus.RUNTIME_ERROR, "it answered before it was asked", rule="crash")
        self._token = secrets.token_hex(8)
        self._channel.send({**message, "token": self._token}, descriptor)

    def _receive(
        self,
        seconds: float,
        failed: EvaluationStatus = EvaluationStatus.RUNTIME_ERROR,
        *,
        limit: float | None = None,
        late: str = _LATE,
    ) -> dict[str, Any]:
        """Wait for an answer; `limit` is what is said to be its time, if that began before."""
        try:
            answer = self._channel.receive(seconds)
        except ChildTimeoutError:
            self.is_dead = True
            detail = f"{late} within {limit or seconds:g} s"
            raise RefusedError(EvaluationStatus.TIMEOUT, detail, rule="timeout") from None
        except ChildCrashedError:
            raise self._crash() from None
        self._check_told()
        if answer.get("token") != self._token:
            self.is_dead = True
            raise RefusedError(
                EvaluationStatus.RUNTIME_ERROR, "its answer is to no question of the judge", rule="crash"
            )
        if "ok" in answer and isinstance(answer["ok"], dict):
            return answer["ok"]
        refusal = _refusal(answer.get("error"), failed)
        # after such an error every later call of the same process fails too
        self.is_dead = any(words in refusal.refusal.detail for words in _LOST)
        raise refusal

    def _crash(self) -> RefusedError:
        self.is_dead = True
        outcome = self._session.close()
        words = " | ".join(outcome.output.strip().splitlines()[-3:])
        cause = str(outcome.error) if outcome.error else "its process ended"
        return RefusedError(
            EvaluationStatus.RUNTIME_ERROR, f"{cause}{': ' if words else ''}{words}"[:_DETAIL_LENGTH], rule="crash"
        )

    def _check_told(self) -> None:
        """Read what the guard noticed."""
        try:
            said = os.read(self._told, _TELL_BYTES).decode(errors="replace")
        except BlockingIOError:
            return
        if said:
            raise RefusedError(EvaluationStatus.RUNTIME_ERROR, redact("; ".join(said.splitlines()[:4])), rule="audit")


_PROTECTIONS = (
    "no_new_privileges",
    "capabilities_dropped",
    "dies_with_parent",
    "memory_limited",
    "network_denied",
    "files_confined",
    "system_calls_filtered",
    "signals_confined",
)


def read_numbers(said: Any) -> list[float]:
    """Take a list of numbers from a process that is not trusted; what is negative, or no finite float, is left out."""
    if not isinstance(said, list):
        return []
    numbers = [each for each in said if isinstance(each, (int, float)) and not isinstance(each, bool)]
    return [float(each) for each in numbers if 0 <= each <= sys.float_info.max]


def _find_left(seconds: float, *, since: float) -> float:
    """Give what is left of a time that began while others were measured too."""
    return max(seconds - (time.perf_counter() - since), _OWN_SHARE * seconds)


def _read_libs(said: Any) -> dict[str, str]:
    """Take names and versions from a process that is not trusted."""
    if not isinstance(said, dict):
        return {}
    pairs = [(str(name)[:_WORD_LENGTH], str(version)[:_WORD_LENGTH]) for name, version in said.items()]
    return dict(pairs[:_MOST_LIBS])


def _refusal(error: Any, failed: EvaluationStatus) -> RefusedError:
    match error:
        case {"kind": "rule", "rule": str() as rule, "message": str() as message}:
            status = EvaluationStatus.INCORRECT_SHAPE if rule == "output-count" else EvaluationStatus.RUNTIME_ERROR
            return RefusedError(status, redact(message[:_DETAIL_LENGTH]), rule=rule)
        case {"kind": "output", "status": "INCORRECT_SHAPE" | "INCORRECT_DTYPE" as status, "message": str() as message}:
            return RefusedError(EvaluationStatus(status), redact(message[:_DETAIL_LENGTH]))
        case {"kind": "missing", "message": str() as message}:
            return RefusedError(EvaluationStatus.COMPILE_ERROR, redact(message[:_DETAIL_LENGTH]))
        case {"kind": "raised", "message": str() as message, "trace": str() as trace}:
            return RefusedError(failed, _digest(message, trace))
    return RefusedError(EvaluationStatus.RUNTIME_ERROR, "its answer cannot be read", rule="crash")


def _digest(message: str, trace: str) -> str:
    """Put the error before the lines that led to it, of a long compiler output those that say error."""
    lines = message.strip().splitlines()
    errors = [line for line in lines if "error" in line.casefold()]
    chosen = lines if len(lines) <= _LOG_LINES else [lines[0], *errors[: _LOG_LINES - 1]]
    return redact("\n".join([*chosen, trace.strip()]).strip()[:_DETAIL_LENGTH])
