"""Files that are whole or absent, and reads that are bounded."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fib_tools.errors import DocumentTooLargeError, FormatError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["read_limited", "storage_errors", "sweep_temporaries", "temporary_sibling", "write_atomically"]

_TEMPORARY = re.compile(r"\.fib-tmp-([0-9]+)-[0-9a-f]+")
_ADVICE = {
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EACCES: "no permission: choose a folder you may write",
    errno.EPERM: "no permission: choose a folder you may write",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "choose a folder: a part of the path is a file",
    errno.EISDIR: "choose another name: a folder has this one",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def temporary_sibling(path: Path) -> Path:
    """Name a file or folder beside `path` that `sweep_temporaries` knows as ours."""
    return path.with_name(f".fib-tmp-{os.getpid()}-{secrets.token_hex(8)}")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses about `path` into a StorageError with advice."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the disk and its permissions")
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(path), todo=advice) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, then replace: a reader or a crash sees the old bytes or the new ones, never a part.

    A symlink at `path` is replaced, not followed.

    Raises:
        StorageError: the disk is read-only, full, or not ours to write.
    """
    with storage_errors(path):
        if not path.name:  # . or /
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = temporary_sibling(path)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where folders can be synced at all."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_limited(path: Path, limit_bytes: int) -> bytes:
    """Read a regular file that may not be larger than the limit.

    Raises:
        DocumentTooLargeError: it is larger.
        FormatError: it is missing, a folder, a device or a pipe, or cannot be read.
    """
    try:
        # without O_NONBLOCK, opening a pipe would wait for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FormatError(f"cannot read: {error.strerror}", where=str(path), todo="pass a readable file") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError("not a regular file", where=str(path), todo="pass a regular file")
    with os.fdopen(descriptor, "rb") as stream:
        data = stream.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise DocumentTooLargeError(f"more than {limit_bytes} bytes", where=str(path), todo="pass a smaller document")
    return data


def sweep_temporaries(folder: Path) -> tuple[Path, ...]:
    """Remove what killed runs of this tool left half-written in `folder`; return what was removed."""
    with storage_errors(folder):
        found = [(path, _TEMPORARY.fullmatch(path.name)) for path in sorted(folder.iterdir())]
        stale = tuple(path for path, match in found if match and not _is_alive(int(match[1])))
        for path in stale:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return stale


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
