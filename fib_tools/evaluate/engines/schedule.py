"""Which worker does what next.

A worker stays with the group that it has open (a definition, and a heat of its Solutions), since its children are costly
to start; then it opens the one with the most work left, and when every group is open somewhere it takes work away from
the largest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from fib_tools.evaluate.engines.items import Item

__all__ = ["Job", "Schedule"]

_Group = tuple[str, int]
_PREPARED = 2
"""Groups that a worker hears of before it opens them: to start and to build may take longer than to measure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """An item, or what is left of one, on its way through workers."""

    item: Item
    """With the Solutions that are still to be evaluated."""
    origin: Item
    """As it was planned."""
    attempt: int = 1
    losses: int = 0
    """Machines that were lost under it."""


class Schedule:
    """The queues of a run, one for each group."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._queues: dict[_Group, deque[Job]] = {}
        self._open: dict[str, _Group] = {}
        """What each worker has open."""
        self._next: dict[str, deque[_Group]] = {}
        """Those that it was told to prepare."""
        for item in items:
            self._queue(item.group).append(Job(item=item, origin=item))

    @property
    def waiting(self) -> int:
        """How many items nobody has taken."""
        return sum(len(queue) for queue in self._queues.values())

    def take(self, worker: str) -> Job | None:
        """Give a worker its next item; None when nothing waits."""
        if not self._has_work(self._open.get(worker)):
            chosen = self._take_prepared(worker) or self._find_largest(self._list_unopened()) or self._find_largest()
            self._open.pop(worker, None)
            if chosen is None:
                return None
            self._open[worker] = chosen
        return self._queues[self._open[worker]].popleft()

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Queue items again, before the others of their group."""
        for job in reversed(list(jobs)):
            self._queue(job.item.group).appendleft(job)

    def find_next(self, worker: str, *, idle: int = 0) -> Job | None:
        """Reserve one more group that a worker will open after its own, and give an item of it.

        None: it has enough, or no more are left than the `idle` workers can open at once.
        """
        reserved = self._next.setdefault(worker, deque())
        if worker not in self._open or len(reserved) >= _PREPARED:
            return None
        unopened = self._list_unopened()
        chosen = self._find_largest(unopened)
        if chosen is None or len(unopened) <= idle:
            return None
        reserved.append(chosen)
        return self._queues[chosen][0]

    def is_wanted(self, worker: str, definition: str) -> bool:
        """Tell whether a worker may still get items of a definition without having stolen them."""
        groups = (self._open.get(worker), *self._next.get(worker, ()))
        return any(group and group[0] == definition for group in groups)

    def dismiss(self, worker: str) -> None:
        """Give up what a worker had open."""
        self._open.pop(worker, None)
        self._next.pop(worker, None)

    def _queue(self, group: _Group) -> deque[Job]:
        return self._queues.setdefault(group, deque())

    def _take_prepared(self, worker: str) -> _Group | None:
        """Take the first group that was prepared and of which others have left something."""
        reserved = self._next.get(worker, deque())
        while reserved:
            group = reserved.popleft()
            if self._has_work(group):
                return group
        return None

    def _has_work(self, group: _Group | None) -> bool:
        return group is not None and bool(self._queues[group])

    def _list_unopened(self) -> list[_Group]:
        taken = {*self._open.values(), *(group for reserved in self._next.values() for group in reserved)}
        return [group for group in self._queues if group not in taken and self._has_work(group)]

    def _find_largest(self, groups: Iterable[_Group] | None = None) -> _Group | None:
        """Find the group with the most evaluations left; the first planned of several."""
        sizes = {
            group: sum(len(job.item.solutions) for job in self._queues[group])
            for group in (self._queues if groups is None else groups)
        }
        best = max(sizes, key=lambda group: sizes[group], default=None)
        return best if best is not None and sizes[best] else None
