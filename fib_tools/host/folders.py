"""Folders that change as a whole: whoever reads one sees the old content or the new, never a mixture."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fib_tools.host._linux import is_linux, libc
from fib_tools.host.files import storage_errors, temporary_sibling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["replace_folder", "stage_folder"]

_HERE = -100
"""AT_FDCWD: relative paths begin at the working directory."""
_EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2)."""


@contextmanager
def stage_folder(target: Path) -> Iterator[Path]:
    """Make an empty folder beside `target` for the block; what is left of it at the end is removed.

    Raises:
        StorageError: when the disk refuses.
    """
    with storage_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = temporary_sibling(target)
        staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def replace_folder(staged: Path, target: Path) -> None:
    """Put a staged folder in the place of another, in one step where the file system can; what stood there is removed.

    Raises:
        StorageError: when the disk refuses.
    """
    with storage_errors(target):
        if not target.exists():
            staged.rename(target)
            return
        if not _exchange(staged, target):
            old = temporary_sibling(target)
            target.rename(old)
            staged.rename(target)
            old.rename(staged)
    shutil.rmtree(staged, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders by renameat2(2); False where the system or the file system does not have it."""
    if not is_linux() or not hasattr(libc(), "renameat2"):
        return False
    return bool(libc().renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
