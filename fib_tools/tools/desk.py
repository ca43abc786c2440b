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
from fib_tools.phases.context import Context, Progress, Workspace
from fib_tools.tools.answer import Answer, Page, cut, document_size, take_whole
from fib_tools.tools.job import JobState
from fib_tools.tools.jobs import JobRequest, Jobs

__all__ = ["Desk", "JobLog"]

_LOG_SHARE = 4
"""One part in four of an answer goes to the log at most."""


class JobLog(Model):
    """Which part of a job's log is wanted."""

    log_lines: Annotated[int, Field(ge=0, le=500)] = 10
    """Lines of the log at most."""
    log_offset: Annotated[int, Field(ge=0)] | None = None
    """Where they begin; the last ones if left out."""


class Desk:
    """Runs operations for callers that are confined to the workspace."""

    def __init__(self, context: Context) -> None:
        root = Path(context.workspace.root).resolve()
        self._context = replace(context, workspace=Workspace(root=root), is_confined=True)
        self.jobs = Jobs(root / "jobs")

    def run(self, operation: Operation, values: Mapping[str, Any], page: Page, progress: Progress) -> Answer:
        """Run an operation here and now.

        Raises:
            FibError: the request cannot be served.
        """
        return cut(take_whole(operation.run(replace(self._context, progress=progress), values)), page)

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
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        return self.jobs.start(request)

    def watch(self, job_id: str, seconds: float, progress: Progress) -> None:
        """Wait for a job's end at most so long, and report its progress."""
        for line in self.jobs.wait(job_id, seconds):
            progress(line, 0, 0)

    def result(self, job_id: str, page: Page) -> Answer:
        """Answer with a job's result, or with where it stands when it has none yet.

        Raises:
            FibError: the request could not be served.
        """
        job = self.jobs.get(job_id)
        if job.failure is not None and job.state is JobState.REFUSED:
            raise FibError(job.failure.what, where=job.failure.where, todo=job.failure.next)
        return self.show(job_id, page, JobLog(log_lines=3))

    def show(self, job_id: str, page: Page, log: JobLog) -> Answer:
        """Answer with where a job stands, a part of its log, and its result if it has one."""
        job, lines, outcome = self.jobs.get(job_id), self.jobs.log(job_id), self.jobs.outcome(job_id)
        begin = max(len(lines) - log.log_lines, 0) if log.log_offset is None else log.log_offset
        wanted = _fitting(lines[begin : begin + log.log_lines], page.max_bytes // _LOG_SHARE)
        frame: dict[str, Any] = {"job": job, "log": wanted, "log_total": len(lines)}
        if outcome is None or outcome.result is None:
            return Answer(**frame)
        reserved = document_size({name: to_document(value) for name, value in frame.items()})
        return cut(outcome.result, page, reserved=reserved).model_copy(update=frame)


def _fitting(lines: Sequence[str], room: int) -> tuple[str, ...]:
    kept: list[str] = []
    for line in reversed(lines):
        room -= len(line.encode()) + 3
        if room < 0:
            break
        kept.insert(0, line)
    return tuple(kept)
