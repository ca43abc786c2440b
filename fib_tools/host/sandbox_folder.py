"""Folders of sandboxes, locked while in use: who is killed leaves his behind, and the next one removes it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["make_folder", "sweep_folders"]

_PREFIX = "fib-sandbox-"
_YOUNG_SECONDS = 60.0
"""A folder is there a moment before its lock."""


def make_folder() -> tuple[Path, int]:
    """Make a folder, and give the descriptor that holds it until it is closed."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder, descriptor


def sweep_folders() -> None:
    """Remove folders that nobody holds any more; those of other users stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
