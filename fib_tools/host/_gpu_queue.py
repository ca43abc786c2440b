"""The queue for GPUs: one file for each request, locked by the kernel for as long as a process of the request lives.

A ticket is a file whose name carries its place in the queue. Its first line says what is asked for; a second line, added
when the request is granted, says which GPUs it has. A ticket counts only while its lock is held: flock(2) belongs to the
open file description, so it is inherited by children and ends with the last process that has it, however that one dies.
What a dead request left behind is not locked, counts for nothing, and is swept by whoever comes next. Everything is
decided under one more lock, the mutex, which is held for milliseconds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import signal
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.errors import LockedError, StorageError
from fib_tools.host.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

__all__ = ["EVERYTHING", "Queue", "Request", "Ticket", "Watch", "default_folder"]

EVERYTHING = "*"
"""Stands for all GPUs in a ticket that is locked but cannot be read, as another version may write it."""

_NAME = re.compile(r"ticket-([0-9]{12})-[0-9a-f]{8}")
_RECORD_BYTES = 1 << 17
_MUTEX = "mutex"
_MUTEX_SECONDS = 30.0
_MUTEX_TICK_SECONDS = 0.001
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STOPPING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Put off while the mutex is held: whoever stops there would stop everyone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a ticket asks for."""

    count: int
    candidates: tuple[str, ...]
    """UUIDs of the GPUs that would do."""
    command: str
    within: tuple[str, ...] = ()
    """The leases, from the outermost, that this request is made under; their GPUs are what it chooses from."""
    pid: int = field(default_factory=os.getpid)
    since: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """A request whose lock is held at the moment of looking."""

    name: str
    request: Request
    gpus: tuple[str, ...] = ()
    granted: str | None = None
    """Since when it has its GPUs; None while it waits."""
    size: int = 0
    inode: tuple[int, int] = (0, 0)

    def wants_any(self, gpus: Collection[str]) -> bool:
        """Tell whether it chooses from any of these."""
        return _meet(self.request.candidates, gpus)

    def has_any(self, gpus: Collection[str]) -> bool:
        """Tell whether it was granted any of these."""
        return _meet(self.gpus, gpus)


def _meet(some: Collection[str], others: Collection[str]) -> bool:
    return EVERYTHING in some or any(item in others for item in some)


def default_folder() -> Path:
    """Name the folder where all processes of this user on this machine meet.

    Not in XDG_RUNTIME_DIR or TMPDIR, which differ between a login, a service and a container, and go at logout.
    """
    return Path("/tmp") / f"fib-gpu-lock-{os.geteuid()}"  # noqa: S108  # its owner and mode are checked


class Queue:
    """The folder of tickets."""

    def __init__(self, folder: Path | None = None) -> None:
        """Open the folder, and make it first where it is missing.

        A folder that others may write to must be sticky, such as one made for a group by an administrator.

        Raises:
            StorageError: it is a symlink, belongs to somebody else, or others could change what is in it.
        """
        self.folder = folder or default_folder()
        with storage_errors(self.folder), suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        try:
            self.descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _unsafe(self.folder, f"cannot be used as a folder of locks: {error.strerror}") from error
        try:
            self._check()
            # systemd-tmpfiles leaves a folder alone while somebody holds a lock on it
            fcntl.flock(self.descriptor, fcntl.LOCK_SH)
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        status = os.fstat(self.descriptor)
        if status.st_uid not in {os.geteuid(), 0}:
            raise _unsafe(self.folder, f"the folder of locks belongs to user {status.st_uid}")
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            raise _unsafe(self.folder, "others could remove the locks in this folder")

    def close(self) -> None:
        """Close the folder."""
        os.close(self.descriptor)

    @contextmanager
    def hold_mutex(self) -> Iterator[None]:
        """Be the only one who looks at tickets and changes them, for a moment.

        Raises:
            LockedError: somebody has been in it for half a minute, so is stopped.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            descriptor = self._lock_mutex()
            try:
                yield
            finally:
                os.close(descriptor)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _lock_mutex(self) -> int:
        deadline = time.monotonic() + _MUTEX_SECONDS
        while True:
            descriptor = self._open_mutex()
            try:
                while not _try_lock(descriptor, fcntl.LOCK_EX):
                    self._check_patience(deadline)
                    time.sleep(_MUTEX_TICK_SECONDS)
                is_current = self._is_current(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            if is_current:
                return descriptor
            os.close(descriptor)  # somebody removed the file meanwhile

    def _check_patience(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            todo = "look for a stopped or frozen process that has this file open, and end it"
            raise LockedError("the queue does not answer", where=str(self.folder / _MUTEX), todo=todo)

    def _is_current(self, descriptor: int) -> bool:
        try:
            now = os.stat(_MUTEX, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(now, os.fstat(descriptor))

    def _open_mutex(self) -> int:
        with storage_errors(self.folder / _MUTEX):
            try:
                return self._open(_MUTEX)
            except FileNotFoundError:
                spare = f".{_MUTEX}-{secrets.token_hex(8)}"
                os.close(self._create(spare))
                with suppress(FileExistsError):
                    os.link(spare, _MUTEX, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
                os.unlink(spare, dir_fd=self.descriptor)
                return self._open(_MUTEX)

    def _open(self, name: str) -> int:
        # to lock a file, reading it is enough, so users of one group can share the folder
        return os.open(name, os.O_RDONLY | _FLAGS, dir_fd=self.descriptor)

    def _create(self, name: str) -> int:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=self.descriptor)
        os.fchmod(descriptor, 0o644)  # whatever the umask; the folder decides who comes near
        return descriptor

    def list_tickets(self) -> list[Ticket]:
        """List the live tickets in their order, and sweep the dead ones; the mutex has to be held."""
        with storage_errors(self.folder):
            return [ticket for ticket in map(self._look_at, self._list_names()) if ticket]

    def _list_names(self) -> list[str]:
        # by the descriptor: the name could lead to another folder by now
        with os.scandir(self.descriptor) as entries:
            return sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name))

    def _look_at(self, name: str) -> Ticket | None:
        try:
            descriptor = self._open(name)
        except FileNotFoundError:
            return None  # its owner gave up at this moment
        try:
            if _try_lock(descriptor, fcntl.LOCK_SH):
                with suppress(PermissionError, FileNotFoundError):  # that of another user; it counts for nothing
                    os.unlink(name, dir_fd=self.descriptor)
                return None
            return _read_ticket(name, descriptor)
        finally:
            os.close(descriptor)

    def enter(self, request: Request) -> tuple[str, int]:
        """Take the last place; return its name and the descriptor that keeps it. The mutex has to be held."""
        with storage_errors(self.folder):
            last = max((int(match[1]) for match in map(_NAME.fullmatch, self._list_names()) if match), default=0)
            name = f"ticket-{last + 1:012d}-{secrets.token_hex(4)}"
            descriptor = self._create(name)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _append(descriptor, {name: getattr(request, name) for name in Request.__slots__})
            except BaseException:
                os.close(descriptor)
                raise
        return name, descriptor

    def grant(self, descriptor: int, gpus: tuple[str, ...]) -> None:
        """Write down which GPUs a ticket has from now on; the mutex has to be held."""
        with storage_errors(self.folder):
            _append(descriptor, {"gpus": gpus, "since": datetime.now(timezone.utc).isoformat(timespec="seconds")})

    def leave(self, name: str, descriptor: int) -> None:
        """Close a ticket; it is gone unless a child still holds it."""
        os.close(descriptor)
        with suppress(OSError):
            self._look_at(name)

    def watch(self, tickets: Sequence[Ticket]) -> Watch:
        """Watch for a change in any of these tickets."""
        watched: list[tuple[int, int]] = []
        for ticket in tickets:
            with suppress(FileNotFoundError):
                watched.append((self._open(ticket.name), ticket.size))
        return Watch(watched, is_changed=len(watched) < len(tickets))


class Watch:
    """Tickets that stand in the way, looked at without the mutex."""

    def __init__(self, watched: list[tuple[int, int]], *, is_changed: bool) -> None:
        self._watched = watched
        self._is_changed = is_changed

    def has_changed(self) -> bool:
        """Tell whether one of them was granted or has ended."""
        return self._is_changed or any(
            os.fstat(descriptor).st_size != size or _try_lock(descriptor, fcntl.LOCK_SH)
            for descriptor, size in self._watched
        )

    def close(self) -> None:
        """Stop watching."""
        for descriptor, _ in self._watched:
            os.close(descriptor)


def _unsafe(folder: Path, what: str) -> StorageError:
    todo = "set FIB_GPU_LOCK_DIR to a folder of your own that every user of these GPUs shares with you"
    return StorageError(what, where=str(folder), todo=todo)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _append(descriptor: int, document: dict[str, Any]) -> None:
    line = json.dumps(document).encode() + b"\n"
    if os.write(descriptor, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_ticket(name: str, descriptor: int) -> Ticket:
    status = os.fstat(descriptor)
    size, inode = status.st_size, (status.st_dev, status.st_ino)
    try:
        lines = [json.loads(line) for line in os.pread(descriptor, _RECORD_BYTES, 0).splitlines()]
        fields: dict[str, Any] = {
            key: tuple(item) if isinstance(item, list) else item for key, item in lines[0].items()
        }
        request = Request(**fields)
        if len(lines) == 1:
            return Ticket(name=name, request=request, size=size, inode=inode)
        gpus = tuple(map(str, lines[1]["gpus"]))
        return Ticket(name=name, request=request, gpus=gpus, granted=lines[1]["since"], size=size, inode=inode)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        unknown = Request(count=0, candidates=(EVERYTHING,), command="(cannot be read)", pid=0, since="(unknown)")
        return Ticket(name=name, request=unknown, gpus=(EVERYTHING,), granted="(unknown)", size=size, inode=inode)
