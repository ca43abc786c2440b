"""Every error this project raises on purpose, in one tree.

* FibError
  x RequestError            the request cannot be served as asked (exit status 2)
    + UnknownModelError     no such model; carries the nearest names
    + ParallelismError      a TP/EP/page size that the model cannot be cut by
    + PathError             a path or name that would leave the workspace
    + LockedError           another run holds what this one needs
    + MissingDependencyError  a package, extra or tool is not installed
  x FormatError             a document does not say what its format demands
    + ConfigError           a model config with missing, contradictory or absurd fields
    + DocumentTooLargeError a document over the size that is read at all
  x SourceError             a source of facts cannot be read
    + OfflineError          it needs the network, and there is none (or it is not allowed)
    + GatedError            it needs a licence acceptance or a token
    + GitError              a git command failed
  x PublishError            a request to the outside was refused
    + BusyError             not now: a rate limit, a fault of the server, or no answer
  x TimeUpError             the time that a run was given is over
  x StorageError            the disk refused: read-only, full, or not permitted
  x ChildError              isolated code did not come to an end of its own
    + ChildTimeoutError     it ran past its time limit
    + ChildMemoryError      it asked for more memory than it may have
    + ChildCrashedError     it died, or broke the protocol
      - JobRaisedError      it raised an exception of its own
"""

from __future__ import annotations

__all__ = [
    "BusyError",
    "ChildCrashedError",
    "ChildError",
    "ChildMemoryError",
    "ChildTimeoutError",
    "ConfigError",
    "DocumentTooLargeError",
    "FibError",
    "FormatError",
    "GatedError",
    "GitError",
    "JobRaisedError",
    "LockedError",
    "MissingDependencyError",
    "OfflineError",
    "ParallelismError",
    "PathError",
    "PublishError",
    "RequestError",
    "SourceError",
    "StorageError",
    "TimeUpError",
    "UnknownModelError",
]


_LONGEST = 2000
"""Characters of each part: what a caller sent comes back in errors, and has no bound of its own."""


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 100]} ... {text[-90:]}"


class FibError(Exception):
    """Say what went wrong, where, and what to do next."""

    def __init__(self, what: str, *, where: str | None = None, todo: str | None = None) -> None:
        self.what = _shorten(what)
        self.where = _shorten(where) if where else None
        """The document, path, URL or field the error is about."""
        self.todo = _shorten(todo) if todo else None
        """What the reader can do about it, as an imperative."""
        super().__init__(self.what)

    def __str__(self) -> str:
        place = f" (in {self.where})" if self.where else ""
        advice = f"; {self.todo}" if self.todo else ""
        return f"{self.what}{place}{advice}"


class RequestError(FibError):
    """The request cannot be served as asked."""


class UnknownModelError(RequestError):
    """No source knows the model's name; `files` are what can be passed in its place."""

    def __init__(self, name: str, nearest: tuple[str, ...] = (), *, files: str = "--config FILE") -> None:
        self.name = name
        self.nearest = nearest
        known = f"did you mean {', '.join(nearest)}? " if nearest else ""
        super().__init__(
            f"unknown model {name!r}",
            todo=f"{known}pass a known name, a Hugging Face repository (org/name) or {files}",
        )


class ParallelismError(RequestError):
    """A TP, EP or page size that the model cannot be cut by."""


class PathError(RequestError):
    """A path or name that would leave the workspace."""


class LockedError(RequestError):
    """Another run holds what this one needs."""


class MissingDependencyError(RequestError):
    """A package, extra or tool is not installed."""

    def __init__(self, package: str, *, purpose: str, install: str) -> None:
        self.package = package
        super().__init__(f"{package} is not installed, and {purpose} needs it", todo=f"run: {install}")


class FormatError(FibError):
    """A document does not say what its format demands."""


class ConfigError(FormatError):
    """A model config with missing, contradictory or absurd fields."""


class DocumentTooLargeError(FormatError):
    """A document over the size that is read at all."""


class SourceError(FibError):
    """A source of facts cannot be read."""


class OfflineError(SourceError):
    """The source needs the network, and there is none or it is not allowed."""


class GatedError(SourceError):
    """The source needs a licence acceptance or a token."""


class GitError(SourceError):
    """A git command failed."""


class PublishError(FibError):
    """A request to the outside was refused."""


class BusyError(PublishError):
    """A request to the outside was not served now; the same request may be served later."""

    def __init__(
        self, what: str, *, where: str | None = None, todo: str | None = None, wait_seconds: float | None = None
    ) -> None:
        super().__init__(what, where=where, todo=todo)
        self.wait_seconds = wait_seconds
        """How long the other side asks to be left alone, if it says so."""


class TimeUpError(FibError):
    """The time that a run was given is over; what was finished is kept."""


class StorageError(FibError):
    """The disk refused: read-only, full, or not permitted."""


class ChildError(FibError):
    """Isolated code did not come to an end of its own."""


class ChildTimeoutError(ChildError):
    """Isolated code ran past its time limit."""


class ChildMemoryError(ChildError):
    """Isolated code asked for more memory than it may have."""


class ChildCrashedError(ChildError):
    """Isolated code died, or broke the protocol."""


class JobRaisedError(ChildCrashedError):
    """Isolated code raised an exception of its own."""

    def __init__(self, type_name: str, message: str, *, line: str) -> None:
        self.type_name = type_name
        self.message = message
        self.line = line
        """Where it was raised, as `file:line in function`."""
        super().__init__(f"{type_name}: {message}" if message else type_name, where=line or None)
