"""The Messages API: one turn, asked again while the service is only busy or the line broke."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from fib_tools.errors import FibError, MissingDependencyError, RequestError, SourceError
from fib_tools.host.env import read_endpoint, read_secret, redact
from fib_tools.llm.prices import Usage
from fib_tools.llm.reply import BrokenStreamError, Reply, StreamReader
from fib_tools.llm.statuses import explain_status, find_address, is_passing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anthropic import Anthropic, APIStatusError
    from tenacity import RetryCallState

__all__ = ["Service", "open_client"]

_ATTEMPTS = 6
_LONGEST_WAIT_SECONDS = 60.0
_SILENCE_SECONDS = 120.0
"""A stream that says nothing for so long is taken as broken; the service sends a ping every few seconds."""

_WHERE = "Messages API"
_BUSY_TYPES = frozenset({"api_error", "overloaded_error", "rate_limit_error", "timeout_error"})
"""An error that comes inside a stream has the status 200 and one of these types."""

_ADVICE = {
    400: "begin a new run if the conversation has grown too long; what this one made is kept",
    401: "check ANTHROPIC_API_KEY",
    402: "check the account's billing",
    403: "check what the key may do",
    404: "check --model and ANTHROPIC_BASE_URL",
    413: "begin a new run: what this one made is kept",
}


class _BusyError(SourceError):
    """The turn failed for a reason that passes."""

    def __init__(self, what: str, *, todo: str, where: str = _WHERE, retry_after: float | None = None) -> None:
        super().__init__(what, where=where, todo=todo)
        self.retry_after = retry_after


@contextmanager
def open_client(purpose: str) -> Iterator[Anthropic]:
    """Open a client with the key and the address that the environment names; its own retries are off.

    `purpose` says what needs it, if it is not installed.

    Raises:
        MissingDependencyError: the SDK is not installed.
        RequestError: there is no key.
    """
    try:
        import anthropic
    except ImportError as error:
        raise MissingDependencyError("anthropic", purpose=purpose, install="pip install 'anthropic>=2.11'") from error
    key = read_secret("ANTHROPIC_API_KEY")
    token = None if key else read_secret("ANTHROPIC_AUTH_TOKEN")
    if not key and not token:
        raise RequestError(
            "no key for the Messages API",
            where="environment",
            todo="set ANTHROPIC_API_KEY (or ANTHROPIC_AUTH_TOKEN); in Claude Code no key is needed, use its skills",
        )
    address = read_endpoint("ANTHROPIC_BASE_URL")
    with anthropic.Anthropic(
        api_key=key, auth_token=token, base_url=address, max_retries=0, timeout=_SILENCE_SECONDS
    ) as client:
        yield client


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """Asks for turns."""

    client: Anthropic
    sleep: Callable[[float], None]
    tell: Callable[[str], None]
    """Told of text as it comes, and of every wait."""
    discard: Callable[[Usage], None]
    """Told what an answer cost that broke off."""
    resume_hint: str
    """What to do when the service stays away."""
    show: Callable[[str], None] | None = None
    """Told of text as it comes, if `tell` is not."""

    def ask(self, make_body: Callable[[], Mapping[str, Any]]) -> Reply:
        """Ask for one turn; the body is made anew for each attempt, since what is left of the budget shrinks.

        Raises:
            SourceError: the service stayed busy or unreachable.
            RequestError: it refuses the key, the model or the request.
        """
        import tenacity  # pulls in asyncio, which no other command needs

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=_Backoff(tenacity.wait_random_exponential(multiplier=1, min=1, max=_LONGEST_WAIT_SECONDS)),
            retry=tenacity.retry_if_exception_type(_BusyError),
            sleep=self.sleep,
            before_sleep=self._tell_of_wait,
            reraise=True,
        )
        return retrying(self._ask_once, make_body)

    def _ask_once(self, make_body: Callable[[], Mapping[str, Any]]) -> Reply:
        import anthropic
        import httpx2

        reader = StreamReader(show=lambda text: (self.show or self.tell)(_last_line(text)))
        try:
            with self.client.messages.stream(**make_body()) as stream:
                return reader.read(stream)
        except anthropic.APIStatusError as error:
            failure = _explain_status(error, todo=self.resume_hint)
            cause: Exception = error
        except (anthropic.APIConnectionError, httpx2.TransportError, httpx2.DecodingError, BrokenStreamError) as error:
            what = f"the connection to the model broke: {redact(str(error)) or type(error).__name__}"
            failure = _BusyError(what, where=f"{_WHERE} at {find_address(self.client)}", todo=self.resume_hint)
            cause = error
        if reader.usage.prompt:
            self.discard(reader.usage)
        raise failure from cause

    def _tell_of_wait(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        what = error.what if isinstance(error, FibError) else "no answer"
        self.tell(f"{what}; attempt {state.attempt_number + 1} of {_ATTEMPTS} in {state.upcoming_sleep:.0f} s")


@dataclass(frozen=True, slots=True)
class _Backoff:
    """Waits ever longer, and never shorter than the service asked for; nobody waits for more than a minute."""

    otherwise: Callable[[RetryCallState], float]

    def __call__(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, _BusyError) else None
        return min(self.otherwise(state) if asked is None else asked, _LONGEST_WAIT_SECONDS)


def _explain_status(error: APIStatusError, *, todo: str) -> FibError:
    said = f"{error.type or 'no type'}: {error.api_message or error.message}"
    advice = _ADVICE.get(error.status_code, "")
    failure = explain_status(error.status_code, said, where=_WHERE, todo=todo, advice=advice)
    is_inside_stream = error.status_code < 400
    if is_passing(error.status_code) or (is_inside_stream and error.type in _BUSY_TYPES):
        return _BusyError(failure.what, todo=todo, retry_after=_read_retry_after(error))
    return failure


def _read_retry_after(error: APIStatusError) -> float | None:
    """Read how long the service wants to be left alone: seconds, or a date."""
    text = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return redact(lines[-1])[-120:] if lines else ""
