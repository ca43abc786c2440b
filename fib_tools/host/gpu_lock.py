"""GPUs for one at a time: asked for in a queue, held by the kernel until the last process of the holder has died.

First come, first served. A request passes an earlier one only if the two choose from different GPUs, as their
CUDA_VISIBLE_DEVICES say; a small one does not slip past a large one, which it could delay without end. Under a lease,
further requests choose among the lease's GPUs, and compete only with each other.

The lock is for the processes of one user on one machine. Users who share GPUs share the queue through a folder that their
administrator made as /tmp is, owned by root and sticky, named in FIB_GPU_LOCK_DIR; whoever does not take part is seen
with `idle` only. GPUs with containers need a folder that is mounted into each.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fib_tools.errors import LockedError, RequestError
from fib_tools.host._gpu_queue import Queue, Request, Ticket, Watch
from fib_tools.host.env import GpuSettings, read_gpu_settings
from fib_tools.host.gpus import Discovery, Gpu, discover_gpus, find_processes
from fib_tools.host.process_tree import list_relatives

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Lease", "Waiting", "acquire", "describe_holder"]

_TICK_SECONDS = 0.005
"""How often the first two in the queue look whether it is their turn."""
_SLOW_TICK_SECONDS = 0.03
_LOOK_SECONDS = 1.0
"""How often a waiter reads the whole queue anew, for its place and in case a change was missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """GPUs that are held."""

    gpus: tuple[Gpu, ...]
    environment: dict[str, str]
    """What a command needs so that it sees these GPUs and no others."""
    descriptors: tuple[int, ...]
    """Pass them to a child (`pass_fds`), and the GPUs stay held until that child has died as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """Where a request stands."""

    position: int
    """1: it gets the next GPUs that come free."""
    seconds: float
    reasons: tuple[str, ...]
    """What it waits for."""


@contextmanager
def acquire(
    count: int,
    *,
    timeout: float | None = None,
    wait: bool = True,
    idle: bool = False,
    command: str = "",
    report: Callable[[Waiting], None] | None = None,
) -> Iterator[Lease]:
    """Hold `count` GPUs for the block and for whatever child took over the lease's descriptors.

    With `idle`, only GPUs on which no process outside this one's family computes; the request waits for them at its
    place, and those behind it wait too. `command` is what others are told; `report` is called while waiting.

    Raises:
        RequestError: there are not so many GPUs here.
        LockedError: they are not free at once (`wait` is off), or not in `timeout` seconds.
        StorageError: the folder of locks is not safe to use.
    """
    settings = read_gpu_settings()
    discovery = discover_gpus(settings)
    _check_count(count, discovery, discovery.visible)
    if count == 0:
        yield Lease(gpus=(), environment=_environment((), settings.lease), descriptors=())
        return
    queue = Queue(settings.lock_folder)
    try:
        choice = _choose_from(queue, discovery, settings)
        _check_count(count, discovery, choice.gpus)
        turn = _Turn(queue, choice, count=count, idle=idle, command=command)
        try:
            patience = (math.inf if timeout is None else timeout) if wait else 0.0
            deadline = time.monotonic() + patience
            gpus = turn.wait(deadline, report or _be_silent)
            descriptors = (turn.descriptor, queue.descriptor)
            yield Lease(gpus=gpus, environment=_environment(gpus, turn.name), descriptors=descriptors)
        finally:
            turn.leave()
    finally:
        queue.close()


def describe_holder(ticket: Ticket) -> str:
    """Say who holds or waits."""
    since = ticket.granted or ticket.request.since
    command = f" ({ticket.request.command})" if ticket.request.command else ""
    return f"process {ticket.request.pid}{command} since {since}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """The GPUs a request may have, and the leases it is made under."""

    gpus: tuple[Gpu, ...]
    within: tuple[str, ...]


def _choose_from(queue: Queue, discovery: Discovery, settings: GpuSettings) -> _Choice:
    if settings.lease is None:
        return _Choice(gpus=discovery.visible, within=())
    with queue.hold_mutex():
        outer = next((ticket for ticket in queue.list_tickets() if ticket.name == settings.lease), None)
    if outer is None:  # it has ended, and what it left in the environment means nothing
        return _Choice(gpus=discovery.visible, within=())
    gpus = tuple(gpu for gpu in discovery.visible if gpu.uuid in outer.gpus)
    return _Choice(gpus=gpus, within=(*outer.request.within, outer.name))


def _check_count(count: int, discovery: Discovery, gpus: Sequence[Gpu]) -> None:
    if count < 0:
        raise RequestError(f"{count} GPUs cannot be held", todo="ask for 0 or more")
    if count > len(gpus):
        notes = "; ".join(discovery.notes)
        what = f"{count} GPUs were asked for, and there {'is' if len(gpus) == 1 else 'are'} {len(gpus)}"
        todo = f"ask for at most {len(gpus)}" if gpus else "use a machine that has them; fib gpu-lock takes 0 as well"
        raise RequestError(what, where=notes or None, todo=todo)


def _environment(gpus: Sequence[Gpu], lease: str | None) -> dict[str, str]:
    names = {
        "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in gpus),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    return {**names, "FIB_GPU_LEASE": lease} if lease else names


def _be_silent(_waiting: Waiting) -> None:
    """Report nothing."""


class _Turn:
    """One request, from taking its ticket to its GPUs."""

    def __init__(self, queue: Queue, choice: _Choice, *, count: int, idle: bool, command: str) -> None:
        self._queue = queue
        self._choice = choice
        self._idle = idle
        uuids = tuple(gpu.uuid for gpu in choice.gpus)
        self._request = Request(count=count, candidates=uuids, command=command, within=choice.within)
        self.name = ""
        self.descriptor = -1
        self._waiting_for: tuple[Ticket, ...] = ()

    def leave(self) -> None:
        """Give the GPUs, or the place, back."""
        if self.descriptor >= 0:
            self._queue.leave(self.name, self.descriptor)
            self.descriptor = -1

    def wait(self, deadline: float, report: Callable[[Waiting], None]) -> tuple[Gpu, ...]:
        """Stand in the queue until it is served or the time is over."""
        began = time.monotonic()
        while True:
            gpus, position, reasons = self._look()
            if gpus:
                return gpus
            now = time.monotonic()
            if now >= deadline:
                todo = "wait for them, raise --timeout, or see fib gpu-lock --status"
                what = f"{self._request.count} of {len(self._choice.gpus)} GPUs are not free: {'; '.join(reasons)}"
                raise LockedError(what, where=str(self._queue.folder), todo=todo)
            report(Waiting(position=position, seconds=now - began, reasons=reasons))
            self._sleep(deadline, _TICK_SECONDS if position <= 2 else _SLOW_TICK_SECONDS)

    def _look(self) -> tuple[tuple[Gpu, ...], int, tuple[str, ...]]:
        """Take the GPUs if it is this request's turn and they are free; else say what it waits for."""
        busy = self._find_busy() if self._idle else {}
        with self._queue.hold_mutex():
            tickets = self._queue.list_tickets()
            if self.descriptor < 0:
                self.name, self.descriptor = self._queue.enter(self._request)
            ahead = self._find_ahead(tickets)
            holders = [ticket for ticket in tickets if self._is_holder(ticket)]
            free = [
                gpu
                for gpu in self._choice.gpus
                if gpu.uuid not in busy and not any(ticket.has_any({gpu.uuid}) for ticket in holders)
            ]
            if not ahead and len(free) >= self._request.count:
                chosen = tuple(free[: self._request.count])
                self._queue.grant(self.descriptor, tuple(gpu.uuid for gpu in chosen))
                return chosen, 0, ()
        self._waiting_for = tuple(ahead[-1:] or holders)
        return (), len(ahead) + 1, self._explain(ahead, holders, busy)

    def _find_ahead(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Find the requests that come first: earlier, not yet served, made under the same lease, for any of our GPUs."""
        return [
            ticket
            for ticket in tickets
            if ticket.name < self.name
            and ticket.granted is None
            and ticket.request.within == self._request.within
            and ticket.wants_any(self._request.candidates)
        ]

    def _is_holder(self, ticket: Ticket) -> bool:
        return ticket.has_any(self._request.candidates) and ticket.name not in self._request.within

    def _find_busy(self) -> dict[str, str]:
        family = list_relatives()
        found = find_processes(self._choice.gpus)
        busy = {}
        for uuid, processes in found.items():
            if processes is None:
                busy[uuid] = "NVML does not say what runs on it"
            elif foreign := [pid for pid in processes if pid not in family]:
                busy[uuid] = f"process {', '.join(map(str, foreign))} computes on it without a lock"
        return busy

    def _explain(self, ahead: list[Ticket], holders: list[Ticket], busy: dict[str, str]) -> tuple[str, ...]:
        reasons = [f"{', '.join(ticket.gpus)}: held by {describe_holder(ticket)}" for ticket in holders]
        reasons += [
            f"{uuid}: {why}" for uuid, why in busy.items() if not any(ticket.has_any({uuid}) for ticket in holders)
        ]
        waiting = [f"{ticket.request.count} wanted earlier by {describe_holder(ticket)}" for ticket in ahead]
        return (*reasons, *waiting)

    def _sleep(self, deadline: float, tick: float) -> None:
        """Sleep until something changes in what this request waits for, or it is time to look again."""
        until = min(deadline, time.monotonic() + _LOOK_SECONDS)
        watch: Watch = self._queue.watch(self._waiting_for)
        try:
            while not watch.has_changed():
                left = until - time.monotonic()
                if left <= 0:
                    return
                time.sleep(min(tick, left))
        finally:
            watch.close()
