"""The child that runs one job: `python -m fib_tools.tools.run_job FOLDER LOCK`."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TextIO

from fib_tools.errors import FibError
from fib_tools.host.env import redact, redact_values
from fib_tools.host.files import write_atomically
from fib_tools.model.summary import Result
from fib_tools.operations import get_operation
from fib_tools.phases.context import Context, Workspace
from fib_tools.tools.answer import take_whole
from fib_tools.tools.job import Failure, JobState
from fib_tools.tools.job_files import JobRequest, Outcome, read_request, save_outcome, save_result

__all__ = ["main"]

_LINE_SECONDS = 0.5
"""Between two lines about one step."""


class _Log:
    """Writes progress to the job's log, a line a step and now and then within one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = time.monotonic()
        self._last = ("", self._began)

    def report(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        stem = step.partition(":")[0]
        if stem == self._last[0] and now - self._last[1] < _LINE_SECONDS and done != total:
            return
        self._last = (stem, now)
        count = f" {done}/{total}" if total else ""
        self._stream.write(f"[{now - self._began:.1f} s] {redact(' '.join(step.split()))}{count}\n")
        self._stream.flush()


def main(arguments: list[str]) -> int:
    """Run the job of a folder, whose request stands on stdin, and write its outcome there."""
    folder = Path(arguments[0])
    os.set_inheritable(int(arguments[1]), False)  # its own children must not keep the lock
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.monotonic()
    outcome = _try(folder)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what has ended is not cancelled
    save_outcome(folder, outcome.model_copy(update={"seconds": round(time.monotonic() - began, 3)}))
    return 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _try(folder: Path) -> Outcome:
    try:
        write_atomically(folder / "pid", str(os.getpid()).encode())
        request = read_request(sys.stdin.buffer.read(), where="stdin")
        with (folder / "log.txt").open("w", encoding="utf-8") as stream:
            result = take_whole(_run(request, _Log(stream)))
        save_result(
            folder, result.model_copy(update=redact_values({"lines": result.lines, "document": result.document}))
        )
    except KeyboardInterrupt:
        return Outcome(state=JobState.CANCELLED, seconds=0)
    except FibError as error:
        return Outcome(state=JobState.REFUSED, seconds=0, failure=Failure.of(error))
    except Exception as error:  # noqa: BLE001  # a face: the traceback stays in stderr.txt
        traceback.print_exc()
        failure = Failure(
            error=type(error).__name__,
            what="the tool crashed",
            where=str(folder / "stderr.txt"),
            next="report it; the same call would end so again",
        )
        return Outcome(state=JobState.CRASHED, seconds=0, failure=failure)
    return Outcome(state=JobState.DONE, seconds=0)


def _run(request: JobRequest, log: _Log) -> Result:
    context = Context(
        workspace=Workspace(root=Path(request.workspace)),
        offline=request.offline,
        progress=log.report,
        dataset_override=Path(request.dataset) if request.dataset else None,
        is_confined=True,
    )
    return get_operation(request.verb).run(context, request.arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
