"""The files of a job's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from fib_tools.errors import StorageError
from fib_tools.host.files import read_limited, write_atomically
from fib_tools.model.base import Model, ModelT, read_strict
from fib_tools.model.canonical import canonical_bytes, load_json
from fib_tools.tools.answer import Whole
from fib_tools.tools.job import Failure, JobState

__all__ = [
    "JobRequest",
    "Outcome",
    "load_outcome",
    "load_request",
    "load_result",
    "read_log",
    "read_request",
    "save_outcome",
    "save_result",
]

_DOCUMENT_BYTES = 64 << 20
_LOG_BYTES = 4 << 20


class JobRequest(Model):
    """What a job is to do, and where."""

    version: Literal[1] = 1
    tool: str
    verb: str
    arguments: dict[str, Any]
    workspace: str
    dataset: str | None = None
    offline: bool = False
    created: AwareDatetime

    def is_like(self, other: JobRequest) -> bool:
        """Tell whether two requests ask for the same thing."""
        return self.model_copy(update={"created": other.created}) == other


class Outcome(Model):
    """How a job ended."""

    version: Literal[1] = 1
    state: Literal[JobState.DONE, JobState.REFUSED, JobState.CANCELLED, JobState.CRASHED]
    seconds: Annotated[float, Field(ge=0)]
    failure: Failure | None = None


def read_request(data: bytes, *, where: str) -> JobRequest:
    """Read what a job is to do."""
    return read_strict(JobRequest, load_json(data, where=where), where=where)


def load_request(folder: Path) -> JobRequest:
    """Read what a job was to do, as it is kept."""
    path = folder / "request.json"
    return read_request(read_limited(path, _DOCUMENT_BYTES), where=str(path))


def load_outcome(folder: Path) -> Outcome | None:
    """Read how a job ended, if it did."""
    return _load(Outcome, folder / "outcome.json")


def load_result(folder: Path) -> Whole | None:
    """Read what a job found, if it found anything."""
    return _load(Whole, folder / "result.json") if load_outcome(folder) else None


def _load(kind: type[ModelT], path: Path) -> ModelT | None:
    if not path.is_file():
        return None
    return read_strict(kind, load_json(read_limited(path, _DOCUMENT_BYTES), where=str(path)), where=str(path))


def save_outcome(folder: Path, outcome: Outcome) -> None:
    """Write how a job ended."""
    write_atomically(folder / "outcome.json", canonical_bytes(outcome))


def save_result(folder: Path, result: Whole) -> None:
    """Write what a job found; its outcome follows."""
    write_atomically(folder / "result.json", canonical_bytes(result))


def read_log(folder: Path, offset: int) -> tuple[tuple[str, ...], int]:
    """Read the whole lines of a log from an offset in bytes on, and say where to go on."""
    try:
        with (folder / "log.txt").open("rb") as stream:
            stream.seek(offset)
            data = stream.read(_LOG_BYTES)
    except FileNotFoundError:
        return (), offset
    except OSError as error:
        raise StorageError(f"cannot read: {error.strerror}", where=str(folder), todo="check its permissions") from error
    whole = data[: data.rfind(b"\n") + 1]
    return tuple(whole.decode("utf-8", "replace").splitlines()), offset + len(whole)
