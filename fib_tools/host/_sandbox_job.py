"""One job, from the fork to its end: runs in a grandchild that trusts nobody and is trusted by nobody."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from fib_tools.errors import FibError
from fib_tools.host.confinement import Limits, confine_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Job", "run_job"]

_TEXT_LIMIT = 4000
_ALLOCATOR_REFUSALS = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "std::bad_alloc")
"""How torch and the C++ library say MemoryError."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the warm process hands to a fork of itself."""

    function: Callable[..., Any]
    limits: Limits
    read_only: tuple[Path, ...]
    scratch: Path
    payload: int
    answer: int
    output: int
    report: int
    """Pipe on which the protections are told before the job's code runs; closed then."""
    own_network: bool
    own_processes: bool
    channel: int | None = None
    """Socket of a session; the function gets it as its second argument."""


def run_job(job: Job) -> NoReturn:
    """Confine this process, run the function once, leave the answer in its file, and end."""
    status = 1
    try:
        _isolate(job)
        with open(job.payload, "rb", closefd=False) as stream:
            payload = json.load(stream)
        _settle_descriptors(job)
        answer = _answer(job, payload)
        _flush()
        _write(job.answer, answer)
        status = 0
    finally:
        os._exit(status)  # no handler that the job registered runs after the answer


def _isolate(job: Job) -> None:
    os.dup2(job.output, 1)
    os.dup2(job.output, 2)
    os.chdir(job.scratch)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        os.environ[name] = str(job.scratch)
    tempfile.tempdir = str(job.scratch)
    protections = confine_process(
        job.limits,
        job.read_only,
        scratch=job.scratch,
        own_network=job.own_network,
        own_processes=job.own_processes,
    )
    _write(job.report, json.dumps(asdict(protections)).encode())
    os.close(job.report)


def _settle_descriptors(job: Job) -> None:
    """Close all but the standard streams, the answer and the channel."""
    kept = sorted({job.answer, job.answer if job.channel is None else job.channel})
    for low, high in zip([2, *kept], [*kept, job.limits.open_files + 1024], strict=True):
        os.closerange(low + 1, high)


def _answer(job: Job, payload: Any) -> bytes:
    try:
        value = (
            job.function(payload) if job.channel is None else job.function(payload, socket.socket(fileno=job.channel))
        )
        answer = json.dumps({"value": value}).encode()
    except BaseException as error:  # noqa: BLE001  # whatever untrusted code raises is its answer, SystemExit included
        return json.dumps({"error": _describe(error)}).encode()
    if len(answer) > job.limits.answer_bytes:
        return json.dumps({"too_large": len(answer)}).encode()
    return answer


def _describe(error: BaseException) -> dict[str, Any]:
    line = _last_line(error)
    error.__traceback__ = None  # frees the frames, and with them what the job had allocated
    gc.collect()
    if isinstance(error, FibError):
        return {"fib": type(error).__name__, "what": error.what, "where": error.where, "todo": error.todo, "line": line}
    message = _text(error)
    memory = isinstance(error, MemoryError) or any(refusal in message for refusal in _ALLOCATOR_REFUSALS)
    return {"type": type(error).__name__, "message": message, "line": line, "memory": memory}


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_TEXT_LIMIT]
    except BaseException:  # noqa: BLE001  # __str__ of an untrusted class
        return ""


def _last_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the job may have closed or replaced them
            stream.flush()


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
