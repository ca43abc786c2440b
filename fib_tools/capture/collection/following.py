"""Calls read and removed while an engine writes them, so that the disk holds a few at a time, however long it runs.

An engine that is started for this runs again when all is killed, and its calls are removed at once.
Those of another come once: they lie there until a step is full and their Workloads are written.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fib_tools.capture.collection.collector import Collector, remove_call, take_calls
from fib_tools.host.files import storage_errors

__all__ = ["Clock", "Follower", "follow_calls"]

_PAUSE_SECONDS = 0.2
_STEP_CALLS = 1000
_STEP_BYTES = 4 << 30
"""Calls that lie there until they are counted: FlashInfer itself ends at 1,000 and 20 GB, unless told otherwise."""
_SESSION_BYTES = 1 << 20
"""FlashInfer writes all metadata into one file as well, which nobody reads here and which never ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """What time it is, and how it passes."""

    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


_CLOCK = Clock()


class Follower:
    """Takes in the calls of one folder, and removes them unless they are held until they are counted."""

    def __init__(self, folder: Path, collector: Collector, *, holds: bool = False) -> None:
        self._folder, self._collector, self._holds = folder, collector, holds
        self.most_bytes = 0
        """That lay there at one time."""
        self.held: dict[Path, None] = {}
        """Calls that were read and lie there."""
        self._fresh = self._bytes = 0

    def step(self) -> bool:
        """Take in the calls that have come to their end; tell whether there were any.

        Raises:
            SourceError: there is no such folder.
            StorageError: what was read cannot be removed.
        """
        self._bytes = _count_bytes(self._folder)
        self.most_bytes = max(self.most_bytes, self._bytes)
        _cut_session(self._folder / "session.jsonl")
        return self._take(is_over=False)

    def finish(self) -> None:
        """Take in the rest, when the engine has ended."""
        self._take(is_over=True)

    @property
    def is_full(self) -> bool:
        """Tell whether what is held has to be counted."""
        return self._fresh >= _STEP_CALLS or (self._fresh > 0 and self._bytes >= _STEP_BYTES)

    def release(self) -> None:
        """Remove what was counted, or came to nothing; a plan() that calls may yet run with stays for them."""
        kept = self._collector.list_plans()
        for path in [path for path in self.held if path not in kept]:
            if path.exists():
                remove_call(path)
            del self.held[path]
        for tally in self._collector.tallies.values():
            tally.forget_folders()
        self._collector.runs.clear()
        self._fresh = 0

    def _take(self, *, is_over: bool) -> bool:
        read = take_calls(self._folder, self._collector, consume=not self._holds, is_over=is_over, known=self.held)
        if self._holds:
            self.held.update(dict.fromkeys(read))
            self._fresh += len(read)
        return bool(read)


def follow_calls(
    folder: Path,
    collector: Collector,
    *,
    idle_seconds: float,
    count: Callable[[], object],
    clock: Clock = _CLOCK,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Follower:
    """Take in calls until none has come for a while; `count` writes what came of them, and then they are removed.

    An interrupt ends the waiting. What is held in the end is for the caller to count, and to remove.

    Raises:
        SourceError: there is no such folder.
        StorageError: what was read cannot be removed.
    """
    follower, last = Follower(folder, collector, holds=True), clock.now()
    while clock.now() - last < idle_seconds:
        try:
            if follower.step():
                last = clock.now()
                report(collector.calls, 0)
            else:
                clock.pause(_PAUSE_SECONDS)
        except KeyboardInterrupt:
            return follower
        if follower.is_full:  # an interrupt here is a kill: what was not counted lies there
            count()
            follower.release()
            last = clock.now()
    follower.finish()
    return follower


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
