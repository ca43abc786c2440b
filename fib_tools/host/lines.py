"""Files that only grow by whole lines: one is on the disk before anything follows from it, and half of one is cut off."""

from __future__ import annotations

import os
from pathlib import Path

from fib_tools.host.files import read_limited, storage_errors

__all__ = ["append_line", "read_lines"]


def append_line(path: Path, text: str) -> None:
    """Write a line behind the others, and wait until the disk has it.

    Raises:
        StorageError: when the disk refuses.
    """
    with storage_errors(path), path.open("ab") as stream:
        stream.write(text.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(path: Path, *, limit: int) -> list[bytes]:
    """Read the lines, none if there is no file, and cut off a last one that a kill left half-written.

    Raises:
        FormatError: the file is larger than `limit` bytes.
        StorageError: when the disk refuses.
    """
    if not path.exists():
        return []
    data = read_limited(path, limit)
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with storage_errors(path):
            os.truncate(path, len(whole))
    return whole.split(b"\n")[:-1]
