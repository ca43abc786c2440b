"""One run at a time, by a lock that the kernel frees when its holder dies."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from fib_tools.errors import FibError, LockedError
from fib_tools.host.files import read_limited, storage_errors, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from filelock import BaseFileLock

__all__ = ["hold", "hold_dataset"]

_HOLDER_BYTES = 4096
_POLL_SECONDS = 0.02
_MOMENT_SECONDS = 0.5
"""Between taking a lock and saying who did, or the other way round at its end."""


@contextmanager
def hold(path: Path, *, purpose: str, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the lock file `path` for the block; who holds it is written beside it, for the message only.

    Raises:
        LockedError: another run still holds it after `wait_seconds`.
        StorageError: the lock file cannot be written.
    """
    import filelock  # a tenth of the start-up budget, and only runs that write need it

    lock = filelock.FileLock(path, timeout=wait_seconds, mode=0o644)
    holder = path.with_name(path.name + ".holder")
    with storage_errors(path):
        try:
            _acquire(lock, holder)
        except filelock.Timeout as error:  # an OSError, but none of the disk
            what = f"{purpose} must wait: {_describe(holder)}"
            raise LockedError(
                what, where=str(path), todo="wait for it (fib_get_job lists an agent's jobs), or end that process"
            ) from error
    try:
        write_atomically(holder, _record(purpose))
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: BaseFileLock, holder: Path) -> None:
    """Take a lock, in its time; a holder who does not say so has just begun or is about to end, and is waited for."""
    import filelock

    try:
        lock.acquire(poll_interval=_POLL_SECONDS)
    except filelock.Timeout:
        if holder.exists():
            raise
        lock.acquire(_MOMENT_SECONDS, poll_interval=_POLL_SECONDS)


_DATASET_SECONDS = 60.0
"""For another process that writes to the same dataset, which takes moments."""


def hold_dataset(root: Path, *, purpose: str) -> AbstractContextManager[None]:
    """Hold a dataset for the block, whatever workspace is at it.

    Raises:
        LockedError: another process holds it for longer than a minute.
        StorageError: the dataset cannot be written.
    """
    return hold(root / ".fib.lock", purpose=purpose, wait_seconds=_DATASET_SECONDS)


def _record(purpose: str) -> bytes:
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "purpose": purpose, "since": since}).encode()


def _describe(holder: Path) -> str:
    try:
        record = json.loads(read_limited(holder, _HOLDER_BYTES))
        return f"process {record['pid']} holds the lock for {record['purpose']!r} since {record['since']}"
    except (FibError, ValueError, KeyError, TypeError):
        return "another process holds the lock"
