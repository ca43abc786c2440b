"""Which processes there are, who started whom, and who has a file open: read from /proc, empty where there is none."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fib_tools.host.env import redact_command

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = [
    "Process",
    "describe_process",
    "find_writers",
    "list_descendants",
    "list_processes",
    "list_relatives",
    "read_cpu_seconds",
]

_PROC = Path("/proc")
_COMMAND_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A live process."""

    pid: int
    parent: int
    command: str
    """Redacted and cut."""


def list_processes() -> dict[int, int]:
    """List every process by its id, with its parent's."""
    parents: dict[int, int] = {}
    for pid in _list_pids():
        with suppress(OSError, ValueError, IndexError):
            fields = (
                (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            )
            if fields[0] not in {"Z", "X"}:
                parents[pid] = int(fields[1])
    return parents


def list_descendants(roots: Iterable[int], parents: dict[int, int]) -> set[int]:
    """List the roots that live, and whatever they started that still descends from them."""
    found = {pid for pid in roots if pid in parents}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        found |= more
        grown = bool(more)
    return found


def list_relatives() -> set[int]:
    """List this process, those it descends from, and those that descend from it."""
    parents = list_processes()
    family = {os.getpid()} | list_descendants([os.getpid()], parents)
    ancestor = os.getpid()
    while ancestor in parents:
        family.add(ancestor)
        ancestor = parents[ancestor]
    return family


def find_writers(inodes: Collection[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """Find which processes have these files (device and inode) open for writing, as far as this user may see."""
    found: dict[tuple[int, int], list[int]] = {inode: [] for inode in inodes}
    for pid in _list_pids():
        with suppress(OSError):
            for inode in {_identify(entry) for entry in os.scandir(_PROC / str(pid) / "fd")}:
                if inode in found:
                    found[inode].append(pid)
    return found


def _identify(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        status = entry.stat()
        is_writing = entry.stat(follow_symlinks=False).st_mode & stat.S_IWUSR  # as in lrwx------
    except OSError:
        return (-1, -1)
    return (status.st_dev, status.st_ino) if is_writing else (-1, -1)


def describe_process(pid: int, parent: int) -> Process:
    """Read what a process runs."""
    command = ""
    with suppress(OSError):
        raw = (_PROC / str(pid) / "cmdline").read_bytes()[: 1 << 16]
        command = redact_command([part.decode("utf-8", errors="replace") for part in raw.rstrip(b"\0").split(b"\0")])
    return Process(pid=pid, parent=parent, command=command[:_COMMAND_CHARACTERS])


def read_cpu_seconds(pid: int) -> float:
    """Read how long all threads of a process have computed, in its own code and in the kernel; 0 where it is gone."""
    with suppress(OSError, ValueError, IndexError):
        fields = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _list_pids() -> list[int]:
    with suppress(OSError):
        return sorted(int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    return []
