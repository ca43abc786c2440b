"""Calls read and removed while an engine writes them, so that the disk holds a few at a time, however long it runs."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fib_tools.capture.collection.collector import Collector, take_calls
from fib_tools.host.files import storage_errors

__all__ = ["Clock", "Follower", "follow_calls"]

_PAUSE_SECONDS = 0.2
_SESSION_BYTES = 1 << 20
"""FlashInfer writes all metadata into one file as well, which nobody reads here and which never ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """What time it is, and how it passes."""

    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


_CLOCK = Clock()


class Follower:
    """Takes in and removes the calls of one folder."""

    def __init__(self, folder: Path, collector: Collector) -> None:
        self._folder, self._collector = folder, collector
        self.most_bytes = 0
        """That lay there at one time."""

    def step(self) -> bool:
        """Take in and remove the calls that have come to their end; tell whether there were any.

        Raises:
            SourceError: there is no such folder.
            StorageError: what was read cannot be removed.
        """
        self.most_bytes = max(self.most_bytes, _count_bytes(self._folder))
        _cut_session(self._folder / "session.jsonl")
        return bool(take_calls(self._folder, self._collector, consume=True, is_over=False))

    def finish(self) -> None:
        """Take in the rest, when the engine has ended."""
        take_calls(self._folder, self._collector, consume=True)


def follow_calls(
    folder: Path,
    collector: Collector,
    *,
    idle_seconds: float,
    clock: Clock = _CLOCK,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> int:
    """Take in and remove calls until none has come for a while; return the most bytes that lay there at one time.

    An interrupt ends the waiting: what was read is gone from the disk, and has to become Workloads.

    Raises:
        SourceError: there is no such folder.
        StorageError: what was read cannot be removed.
    """
    follower, last = Follower(folder, collector), clock.now()
    try:
        while clock.now() - last < idle_seconds:
            if follower.step():
                last = clock.now()
                report(collector.calls, 0)
            else:
                clock.pause(_PAUSE_SECONDS)
    except KeyboardInterrupt:
        return follower.most_bytes
    follower.finish()
    return follower.most_bytes


def _count_bytes(folder: Path) -> int:
    total = 0
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        try:
            facts = path.stat(follow_symlinks=False)
        except OSError:  # the engine may just have replaced it
            continue
        total += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return total


def _cut_session(path: Path) -> None:
    """Empty the list of all calls when it has grown; it is opened anew, at its end, for each line."""
    if path.is_file() and not path.is_symlink() and path.stat().st_size > _SESSION_BYTES:
        with storage_errors(path):
            os.truncate(path, 0)
