"""What `fib gpu-lock --status` prints."""

from __future__ import annotations

from pydantic import Field

from fib_tools.host.gpu_status import GpuState, Holder, LockStatus
from fib_tools.model.base import Model
from fib_tools.model.summary import Result, Summary, Table

__all__ = ["GpuLockResult", "GpuRow", "HolderRow", "ProcessRow", "WaiterRow", "build_result"]


class GpuRow(Model):
    """A GPU, or an instance of one."""

    uuid: str
    index: int
    name: str
    parent: str | None = None
    """The GPU that this instance is cut from."""
    is_visible: bool
    """CUDA_VISIBLE_DEVICES leaves it."""
    leases: tuple[str, ...] = ()
    """Who holds it, the outermost first."""
    strangers: tuple[int, ...] = ()
    """Processes that compute on it without a lock."""


class ProcessRow(Model):
    """A process that keeps a lock."""

    pid: int
    parent: int
    command: str


class HolderRow(Model):
    """A lease."""

    lease: str
    pid: int
    """The process that asked for it."""
    command: str
    since: str
    gpus: tuple[str, ...]
    within: str | None = None
    """The lease it was taken under."""
    processes: tuple[ProcessRow, ...] = ()


class WaiterRow(Model):
    """A request that waits."""

    pid: int
    command: str
    since: str
    count: int
    candidates: tuple[str, ...]
    within: str | None = None


class GpuLockResult(Result):
    """Who holds which GPU, and who waits."""

    folder: str
    is_pretend: bool
    gpus: tuple[GpuRow, ...] = Field(default_factory=tuple)
    holders: tuple[HolderRow, ...] = Field(default_factory=tuple)
    waiters: tuple[WaiterRow, ...] = Field(default_factory=tuple)
    notes: tuple[str, ...] = Field(default_factory=tuple)

    def summary(self) -> Summary:
        """Show one row a GPU, a holder's process and a waiter."""
        by_lease = {holder.lease: holder for holder in self.holders}
        gpus = tuple((row.uuid, str(row.index), row.name, _describe_use(row, by_lease)) for row in self.gpus)
        processes = tuple(
            (", ".join(holder.gpus), str(process.pid), str(process.parent), process.command)
            for holder in self.holders
            for process in holder.processes
        )
        waiters = tuple(
            (str(place), str(row.count), str(row.pid), row.since, row.command)
            for place, row in enumerate(self.waiters, start=1)
        )
        tables = (
            Table(title="GPUs", columns=("GPU", "Index", "Name", "Held by"), rows=gpus),
            Table(title="Processes that keep a lock", columns=("GPUs", "PID", "Parent", "Command"), rows=processes),
            Table(title="Waiting", columns=("Place", "GPUs", "PID", "Since", "Command"), rows=waiters),
        )
        free = sum(not row.leases for row in self.gpus)
        last = f"{free} of {len(self.gpus)} GPUs free, {len(self.waiters)} waiting; locks in {self.folder}"
        return Summary(tables=tuple(table for table in tables if table.rows), lines=(*self.notes, last))


def _describe_use(row: GpuRow, holders: dict[str, HolderRow]) -> str:
    held = [
        f"process {holder.pid} since {holder.since}: {holder.command}"
        for holder in (holders[lease] for lease in row.leases)
    ]
    if row.strangers:
        held.append(f"without a lock: process {', '.join(map(str, row.strangers))}")
    return "; ".join(held) or ("free" if row.is_visible else "free, but hidden by CUDA_VISIBLE_DEVICES")


def build_result(status: LockStatus) -> GpuLockResult:
    """Turn what the locks say into a document."""
    return GpuLockResult(
        folder=str(status.folder),
        is_pretend=status.is_pretend,
        gpus=tuple(map(_build_gpu, status.gpus)),
        holders=tuple(map(_build_holder, status.holders)),
        waiters=tuple(
            WaiterRow(
                pid=waiter.pid,
                command=waiter.command,
                since=waiter.since,
                count=waiter.count,
                candidates=waiter.candidates,
                within=waiter.within,
            )
            for waiter in status.waiters
        ),
        notes=status.notes,
    )


def _build_gpu(state: GpuState) -> GpuRow:
    return GpuRow(
        uuid=state.gpu.uuid,
        index=state.gpu.index,
        name=state.gpu.name,
        parent=state.gpu.parent,
        is_visible=state.is_visible,
        leases=state.leases,
        strangers=state.strangers,
    )


def _build_holder(holder: Holder) -> HolderRow:
    return HolderRow(
        lease=holder.lease,
        pid=holder.pid,
        command=holder.command,
        since=holder.since,
        gpus=holder.gpus,
        within=holder.within,
        processes=tuple(
            ProcessRow(pid=process.pid, parent=process.parent, command=process.command) for process in holder.processes
        ),
    )
