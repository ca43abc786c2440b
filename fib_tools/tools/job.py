"""A job as its caller sees it."""

from __future__ import annotations

from enum import Enum

from fib_tools.model.base import Model

__all__ = ["Failure", "Job", "JobState"]


class JobState(str, Enum):
    """Where a job stands."""

    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    """The request could not be served; the failure says why."""
    CANCELLED = "cancelled"
    DIED = "died"
    """It ended without an outcome; the same request goes on where it stopped."""


class Failure(Model):
    """Why a request could not be served."""

    error: str
    """The error's class."""
    what: str
    where: str | None = None
    next: str | None = None


class Job(Model):
    """A job as a caller sees it."""

    job_id: str
    tool: str
    state: JobState
    created: str
    seconds: float
    failure: Failure | None = None
