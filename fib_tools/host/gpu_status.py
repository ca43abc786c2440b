"""Who holds which GPU and who waits, as the kernel's locks say at this moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fib_tools.host._gpu_queue import Queue, Ticket, default_folder
from fib_tools.host.env import read_gpu_settings
from fib_tools.host.gpus import Gpu, discover_gpus, find_processes
from fib_tools.host.process_tree import Process, describe_process, find_writers, list_descendants, list_processes

__all__ = ["GpuState", "Holder", "LockStatus", "Waiter", "read_status"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A lease that lives."""

    lease: str
    pid: int
    """The process that asked; it may have died since, while its children hold on."""
    command: str
    since: str
    gpus: tuple[str, ...]
    within: str | None
    """The lease that this one was taken under."""
    processes: tuple[Process, ...]
    """Those that keep the lock, and what they started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiter:
    """A request that waits."""

    pid: int
    command: str
    since: str
    count: int
    candidates: tuple[str, ...]
    within: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuState:
    """What one lock is for, and how it stands."""

    gpu: Gpu
    is_visible: bool
    """CUDA_VISIBLE_DEVICES leaves it."""
    leases: tuple[str, ...]
    """Who holds it, the outermost lease first; empty: it is free."""
    strangers: tuple[int, ...]
    """Processes that compute on it and belong to no lease."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LockStatus:
    """All of it."""

    folder: Path
    gpus: tuple[GpuState, ...]
    holders: tuple[Holder, ...]
    waiters: tuple[Waiter, ...]
    """In the order of their turn."""
    notes: tuple[str, ...]
    is_pretend: bool


def read_status() -> LockStatus:
    """Look at the locks; nothing is changed but that dead requests are swept.

    Raises:
        StorageError: the folder of locks is not safe to use.
    """
    settings = read_gpu_settings()
    discovery = discover_gpus(settings)
    folder = settings.lock_folder or default_folder()
    tickets = _list_tickets(folder) if folder.exists() or folder.is_symlink() else []
    holders = _describe_holders([ticket for ticket in tickets if ticket.granted is not None])
    running = find_processes(discovery.all_gpus)
    known = {process.pid for holder in holders for process in holder.processes}
    states = tuple(
        GpuState(
            gpu=gpu,
            is_visible=gpu in discovery.visible,
            leases=tuple(ticket.name for ticket in tickets if ticket.has_any({gpu.uuid})),
            strangers=tuple(pid for pid in running[gpu.uuid] or () if pid not in known),
        )
        for gpu in discovery.all_gpus
    )
    waiters = tuple(_describe_waiter(ticket) for ticket in tickets if ticket.granted is None)
    return LockStatus(
        folder=folder,
        gpus=states,
        holders=holders,
        waiters=waiters,
        notes=discovery.notes,
        is_pretend=discovery.is_pretend,
    )


def _list_tickets(folder: Path) -> list[Ticket]:
    queue = Queue(folder)
    try:
        with queue.hold_mutex():
            return queue.list_tickets()
    finally:
        queue.close()


def _describe_holders(tickets: list[Ticket]) -> tuple[Holder, ...]:
    writers = find_writers({ticket.inode for ticket in tickets})
    parents = list_processes()
    return tuple(_describe_holder(ticket, writers[ticket.inode], parents) for ticket in tickets)


def _describe_holder(ticket: Ticket, writers: list[int], parents: dict[int, int]) -> Holder:
    request = ticket.request
    return Holder(
        lease=ticket.name,
        pid=request.pid,
        command=request.command,
        since=ticket.granted or "",
        gpus=ticket.gpus,
        within=request.within[-1] if request.within else None,
        processes=tuple(describe_process(pid, parents[pid]) for pid in sorted(list_descendants(writers, parents))),
    )


def _describe_waiter(ticket: Ticket) -> Waiter:
    request = ticket.request
    return Waiter(
        pid=request.pid,
        command=request.command,
        since=request.since,
        count=request.count,
        candidates=request.candidates,
        within=request.within[-1] if request.within else None,
    )
