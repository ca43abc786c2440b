"""A job as its caller sees it."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Annotated

from pydantic import AwareDatetime, Field

from fib_tools.errors import FibError
from fib_tools.host.env import redact
from fib_tools.model.base import Model

__all__ = ["Failure", "Job", "JobState"]


class JobState(str, Enum):
    """Where a job stands."""

    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    """The request could not be served; the failure says why."""
    CANCELLED = "cancelled"
    CRASHED = "crashed"
    """A defect of the tool; the same request would end so again."""
    DIED = "died"
    """It was killed; the same request goes on where it stopped."""


class Failure(Model):
    """Why a request could not be served."""

    error: str
    """The error's class."""
    what: str
    where: str | None = None
    next: str | None = None

    @classmethod
    def of(cls, error: FibError) -> Failure:
        """Write an error down, its secrets masked."""
        where, todo = (redact(text) if text else None for text in (error.where, error.todo))
        return cls(error=type(error).__name__, what=redact(error.what), where=where, next=todo)


class Job(Model):
    """A job as a caller sees it."""

    job_id: str
    tool: str
    state: JobState
    created: AwareDatetime
    seconds: Annotated[float, Field(ge=0)]
    failure: Failure | None = None

    @property
    def order(self) -> tuple[datetime, str]:
        """What sorts jobs by age."""
        return self.created, self.job_id
