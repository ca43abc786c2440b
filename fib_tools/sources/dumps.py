"""Raw Definitions that FlashInfer wrote while a model ran: a folder of JSON files of any version and any quality."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fib_tools.errors import FormatError, SourceError
from fib_tools.host.files import read_limited
from fib_tools.model.base import Model
from fib_tools.model.canonical import load_json
from fib_tools.model.report import Finding, Severity

__all__ = ["RawDump", "load_raw_dumps"]

# Definitions carry their reference's source; the largest of FlashInfer's templates writes 60 KB.
_LIMIT = 4 << 20
_MAX_FILES = 100_000


class RawDump(Model):
    """One dumped file, parsed and otherwise as it was."""

    path: Path
    """Relative to the folder that was read."""
    data: dict[str, Any]
    sha256: str
    """Of its bytes."""


def load_raw_dumps(folder: Path) -> Iterator[RawDump | Finding]:
    """Read every JSON file below a folder, in the order of their paths; a file that cannot be read is a finding.

    Links are not followed: a dump is a file.

    Raises:
        SourceError: the folder is none, or holds an absurd number of files.
    """
    if not folder.is_dir():
        raise SourceError("this is no folder", where=str(folder), todo="name the folder the dumps were written to")
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.json"))
    if len(paths) > _MAX_FILES:
        raise SourceError(f"{len(paths)} JSON files are more than {_MAX_FILES}", where=str(folder))
    for path in paths:
        if (folder / path).is_symlink():
            yield _finding(path, "it is a link")
        else:
            yield _load(folder, path)


def _load(folder: Path, path: Path) -> RawDump | Finding:
    try:
        raw = read_limited(folder / path, _LIMIT)
        data = load_json(raw, where=str(path))
    except FormatError as error:
        return _finding(path, str(error))
    if not isinstance(data, dict):
        return _finding(path, f"a Definition is a JSON object, this is a {type(data).__name__}")
    return RawDump(path=path, data=data, sha256=hashlib.sha256(raw).hexdigest())


def _finding(path: Path, message: str) -> Finding:
    return Finding(
        severity=Severity.ERROR,
        check="dump.unreadable",
        where=path.as_posix(),
        message=message,
        todo="dump it again, or remove the file",
    )
