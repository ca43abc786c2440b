"""Where tools do their work: at once, or as a job that is watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fib_tools.errors import FibError
from fib_tools.model.base import Model, to_document
from fib_tools.operation import Operation
from fib_tools.phases.context import Context, Workspace
from fib_tools.tools.answer import Answer, Page, cut, document_size, take_whole
from fib_tools.tools.job import Job, JobState
from fib_tools.tools.job_files import JobRequest
from fib_tools.tools.jobs import Jobs
from fib_tools.tools.tool import Caller

__all__ = ["Desk", "JobLog"]

_LOG_SHARE = 4
"""One part in four of an answer goes to the log at most."""
_LINE_CHARACTERS = 200
_FRAME_BYTES = 20


class JobLog(Model):
    """Which part of a job's log is wanted."""

    log_lines: Annotated[int, Field(ge=0, le=500)] = 10
    """Lines of the log at most."""
    log_offset: Annotated[int, Field(ge=0)] | None = None
    """Their first line: log_next_offset of the answer before; the last lines if left out."""


class Desk:
    """Runs operations for callers that are confined to the workspace."""

    def __init__(self, context: Context) -> None:
        root = Path(context.workspace.root).resolve()
        self._context = replace(context, workspace=Workspace(root=root), is_confined=True)
        self.jobs = Jobs(root)

    def run(self, operation: Operation, values: Mapping[str, Any], page: Page, caller: Caller) -> Answer:
        """Run an operation here and now.

        Raises:
            FibError: the request cannot be served.
        """
        return cut(take_whole(operation.run(replace(self._context, progress=caller.progress), values)), page)

    def start(self, operation: Operation, values: Mapping[str, Any]) -> str:
        """Start an operation as a job and return its id."""
        dataset = self._context.dataset_override
        request = JobRequest(
            tool=operation.tool,
            verb=operation.verb,
            arguments=dict(values),
            workspace=str(self._context.workspace.root),
            dataset=str(dataset.resolve()) if dataset else None,
            offline=self._context.offline,
            created=datetime.now(timezone.utc).replace(microsecond=0),
        )
        return self.jobs.start(request)

    def watch(self, job_id: str, seconds: float, caller: Caller) -> None:
        """Wait for a job's end at most so long, as long as the caller is there, and report its progress."""
        for line in self.jobs.wait(job_id, seconds, is_wanted=caller.is_there):
            caller.progress(line, 0, 0)

    def list_jobs(self, page: Page) -> Answer:
        """Answer with the newest jobs."""
        kept: list[Job] = []
        room = page.max_bytes - _FRAME_BYTES
        for job in self.jobs.list_jobs()[: page.limit]:
            room -= document_size(to_document(job)) + 1
            if room < 0:
                break
            kept.append(job)
        return Answer(jobs=tuple(kept))

    def result(self, job_id: str, page: Page) -> Answer:
        """Answer with a job's result, or with where it stands when it has none yet.

        Raises:
            FibError: the request could not be served.
        """
        job = self.jobs.get(job_id)
        if job.failure is not None and job.state in {JobState.REFUSED, JobState.CRASHED}:
            raise FibError(job.failure.what, where=job.failure.where, todo=job.failure.next)
        return self.show(job_id, page, JobLog(log_lines=3))

    def show(self, job_id: str, page: Page, log: JobLog) -> Answer:
        """Answer with where a job stands, a part of its log, and its result if it has one."""
        job, lines, result = self.jobs.get(job_id), self.jobs.log(job_id), self.jobs.result(job_id)
        room = page.max_bytes // _LOG_SHARE
        if log.log_offset is None:
            begin = max(len(lines) - log.log_lines, 0)
            wanted = tuple(reversed(_fitting(tuple(reversed(lines[begin:])), room)))
            following = None
        else:
            wanted = _fitting(lines[log.log_offset : log.log_offset + log.log_lines], room)
            end = log.log_offset + len(wanted)
            following = end if end < len(lines) else None
        frame = Answer(job=job, log=wanted, log_total=len(lines), log_next_offset=following)
        if result is None:
            return frame
        answer = cut(result, page, reserved=document_size(to_document(frame)))
        own = {name: getattr(frame, name) for name in ("job", "log", "log_total", "log_next_offset")}
        return answer.model_copy(update=own)


def _fitting(lines: Sequence[str], room: int) -> tuple[str, ...]:
    """Keep as many lines from the beginning as there is room for, and one in any case."""
    kept: list[str] = []
    for line in lines:
        room -= document_size(line) + 1
        if room < 0:
            return tuple(kept) or (line[:_LINE_CHARACTERS],)
        kept.append(line)
    return tuple(kept)
