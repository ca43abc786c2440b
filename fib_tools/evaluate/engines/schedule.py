"""Which worker does what next.

A worker stays with the group that it has open (a definition, and a heat of its Solutions), since its children are costly
to start; then it opens the one with the most work left, and when every group is open somewhere it takes work away from
the largest. A group that still compiles is deferred: the worker takes others, and comes back to it before each new one.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from fib_tools.evaluate.engines.items import Item

__all__ = ["Job", "Schedule"]

_Group = tuple[str, int]
_PREPARED = 4
"""Groups that a worker hears of before it opens them: to start and to build may take longer than to measure."""
_MOST_DEFERRED = 6
"""Groups that one worker may have begun and not opened: each compiles, and holds memory of its device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """An item, or what is left of one, on its way through workers."""

    item: Item
    """With the Solutions that are still to be evaluated."""
    origin: Item
    """As it was planned."""
    place: int
    """In the plan."""
    attempt: int = 1
    losses: int = 0
    """Machines that were lost under it."""


class Schedule:
    """The queues of a run, one for each group."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._queues: dict[_Group, list[Job]] = {}
        self._open: dict[str, _Group] = {}
        """What each worker has open."""
        self._next: dict[str, deque[_Group]] = {}
        """Those that it was told to prepare."""
        self._deferred: dict[str, list[_Group]] = {}
        """Those that it has begun, and that compiled when it was to open them."""
        self._due: dict[str, deque[_Group]] = {}
        """Those of them that it is to try again before it opens another."""
        for place, item in enumerate(items):
            self._queue(item.group).append(Job(item=item, origin=item, place=place))

    @property
    def waiting(self) -> int:
        """How many items nobody has taken."""
        return sum(len(queue) for queue in self._queues.values())

    def take(self, worker: str) -> Job | None:
        """Give a worker its next item; None when nothing waits."""
        group = self._open.get(worker)
        if group is None or not self._queues[group]:
            if group is not None:
                self._due[worker] = deque(self._list_deferred(worker))
            group = self._choose(worker)
            self._open.pop(worker, None)
            if group is None:
                return None
            self._open[worker] = group
            self._deferred[worker] = [each for each in self._list_deferred(worker) if each != group]
        return self._queues[group].pop(0)

    def _choose(self, worker: str) -> _Group | None:
        """Find the group that a worker opens next."""
        deferred = self._list_deferred(worker)
        due = self._take_first(self._due.get(worker, deque()))
        if due or len(deferred) >= _MOST_DEFERRED:
            return due or deferred[0]
        prepared = self._take_first(self._next.get(worker, deque()))
        fresh = prepared or self._find_largest(self._list_unopened())
        others = [group for group in self._queues if group not in deferred]
        return fresh or self._find_largest(others) or next(iter(deferred), None)

    def defer(self, worker: str, job: Job) -> None:
        """Take back an item whose group still compiles at a worker; it comes again after others."""
        group = job.item.group
        self.put_back([job])
        if self._open.get(worker) == group:
            del self._open[worker]
        self._deferred[worker] = [*(each for each in self._list_deferred(worker) if each != group), group]

    def has_others(self, worker: str, group: _Group) -> bool:
        """Tell whether there is a group for a worker to open while this one compiles."""
        deferred = self._list_deferred(worker)
        if len({*deferred, group}) >= _MOST_DEFERRED:
            return False
        return any(self._has_work(each) for each in self._queues if each != group and each not in deferred)

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Queue items again, in their places."""
        for job in jobs:
            bisect.insort(self._queue(job.item.group), job, key=lambda each: each.place)

    def find_next(self, worker: str, *, idle: int = 0, workers: int = 1) -> Job | None:
        """Reserve one more group that a worker will open after its own, and give an item of it.

        None: it has enough, or its share of what is left among so many workers, or no more are left than the `idle` ones
        can open at once.
        """
        reserved = self._next.setdefault(worker, deque())
        unopened = self._list_unopened()
        share = -(-(len(unopened) + sum(map(len, self._next.values()))) // workers)
        if worker not in self._open or len(reserved) >= min(_PREPARED, share):
            return None
        chosen = self._find_largest(unopened)
        if chosen is None or len(unopened) <= idle:
            return None
        reserved.append(chosen)
        return self._queues[chosen][0]

    def is_wanted(self, worker: str, definition: str) -> bool:
        """Tell whether a worker may still get items of a definition without having stolen them."""
        groups = (self._open.get(worker), *self._next.get(worker, ()), *self._deferred.get(worker, ()))
        return any(group and group[0] == definition for group in groups)

    def dismiss(self, worker: str) -> None:
        """Give up what a worker had open."""
        for kept in (self._open, self._next, self._deferred, self._due):
            kept.pop(worker, None)

    def _queue(self, group: _Group) -> list[Job]:
        return self._queues.setdefault(group, [])

    def _take_first(self, groups: deque[_Group]) -> _Group | None:
        """Take the first of which others have left something."""
        while groups:
            group = groups.popleft()
            if self._has_work(group):
                return group
        return None

    def _list_deferred(self, worker: str) -> list[_Group]:
        return [group for group in self._deferred.get(worker, ()) if self._has_work(group)]

    def _has_work(self, group: _Group) -> bool:
        return bool(self._queues[group])

    def _list_unopened(self) -> list[_Group]:
        begun = (group for kept in (self._next, self._deferred) for groups in kept.values() for group in groups)
        taken = {*self._open.values(), *begun}
        return [group for group in self._queues if group not in taken and self._has_work(group)]

    def _find_largest(self, groups: Iterable[_Group]) -> _Group | None:
        """Find the group with the most evaluations left; the first planned of several."""
        sizes = {group: sum(len(job.item.solutions) for job in self._queues[group]) for group in groups}
        best = max(sizes, key=lambda group: sizes[group], default=None)
        return best if best is not None and sizes[best] else None
