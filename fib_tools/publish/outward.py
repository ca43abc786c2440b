"""What is asked of the outside: each request as a value that can be shown, and steps that are tried again.

A step finds what there is before it writes, so that trying it again, or running everything again, never makes a second
pull request or issue.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from fib_tools.errors import BusyError, PublishError
from fib_tools.model.base import Model
from fib_tools.model.manifest import Submission, SubmissionStatus

__all__ = [
    "GITHUB",
    "Action",
    "Failure",
    "Outbox",
    "Patience",
    "Places",
    "Request",
    "SentFile",
    "Settled",
    "Tokens",
    "persist",
    "read_status",
]

T = TypeVar("T")

GITHUB = "https://api.github.com"
"""GitHub's own API; an enterprise has another."""

Action = Literal["opened", "updated", "unchanged", "would open", "would update", "found", "merged", "closed"]
"""`found`: somebody else asked for it already; `closed`: somebody closed it, and it stays so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Who asks; without a token nothing is looked up."""

    hub: str | None = field(repr=False)
    github: str | None = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where requests go, and as whom."""

    hf_repo: str
    hf_endpoint: str
    github_repo: str
    document: str
    """The coverage document in it."""
    flashinfer_repo: str
    sglang_repo: str
    github_api: str
    tokens: Tokens


class Failure(Model):
    """One thing that keeps a group of Definitions from being sent."""

    group: str
    definition: str = ""
    """Empty if it is about the group's pull request."""
    check: str
    found: str
    todo: str


class SentFile(Model):
    """A file of a request."""

    path: str
    size: int


class Request(Model):
    """One request that writes, as it is sent or would be."""

    service: Literal["github", "huggingface"]
    method: str
    target: str
    """What it is sent to: the path at the service."""
    branch: str = ""
    title: str = ""
    body: str = ""
    files: tuple[SentFile, ...] = ()


class Settled(Model):
    """How a pull request or issue stands after a step."""

    action: Action
    submission: Submission | None = None
    """None as long as it is only shown."""
    branch: str = ""
    title: str = ""
    note: str = ""


@dataclass(kw_only=True)
class Outbox:
    """Takes every request that writes; sends it only if that was asked for."""

    sends: bool
    sent: Callable[[Request], None]
    """Told of each request once it was served, or at once where nothing is sent."""
    tries: int = 0
    """Requests that were sent, those among them that got no answer."""

    @property
    def updated(self) -> Action:
        """What to call a thing that was changed, or would be."""
        return "updated" if self.sends else "would update"

    def send(self, request: Request, act: Callable[[], T] | None) -> T | None:
        """Send a request, or show it; None where nothing was sent, or there is nothing yet to send it to."""
        answer = None
        if act is not None and self.sends:
            self.tries += 1
            answer = act()
        self.sent(request)
        return answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long to try."""

    attempts: int = 6
    longest_wait: float = 900.0
    """Seconds; who asks for more is asked again by the next run."""
    sleep: Callable[[float], None] = field(default=time.sleep)


def persist(step: Callable[[], T], patience: Patience) -> T:
    """Take a step, and take it again while the other side is busy: as late as it asks, or ever later.

    Raises:
        PublishError: it was refused, or was busy to the last.
    """
    import tenacity

    def is_worth_it(error: BaseException) -> bool:
        return isinstance(error, BusyError) and (error.wait_seconds or 0) <= patience.longest_wait

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait_seconds if isinstance(error, BusyError) else None
        return float(2 ** (state.attempt_number - 1)) if asked is None else asked

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_worth_it),
        wait=wait,
        stop=tenacity.stop_after_attempt(patience.attempts),
        sleep=patience.sleep,
        reraise=True,
    )
    try:
        return retrying(step)
    except BusyError as error:
        raise PublishError(
            f"{error.what}; given up after {retrying.statistics.get('attempt_number', 1)} attempts",
            where=error.where,
            todo="run the same command again later: it goes on where it stopped",
        ) from error


def read_status(state: str, *, is_merged: bool = False) -> SubmissionStatus:
    """Read how a service calls the state of a pull request or issue."""
    if is_merged or state == "merged":
        return "merged"
    return "closed" if state == "closed" else "open"
