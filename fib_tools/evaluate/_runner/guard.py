"""What a Solution may not do in its process, noticed while it is done.

Python tells its audit hooks of what code asks of the system and of other code's insides (PEP 578); a hook cannot be
taken away. An event counts when the nearest Python frame is the Solution's own. What is noticed goes through a pipe to
the judge at once, so that it cannot be unsaid.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from operator import is_
from os import stat, waitid  # held here, where a replacement is noticed
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

__all__ = ["Guard"]

_FORBIDDEN = (
    "sys._getframe",
    "sys._current_frames",
    "sys._current_exceptions",
    "sys.settrace",
    "sys.setprofile",
    "sys.addaudithook",
    "sys.unraisablehook",
    "gc.",
    "ctypes.",
    "code.__new__",
    "function.__new__",
    "object.__getattr__",
    "object.__setattr__",
    "object.__delattr__",
    "subprocess.",
    "os.",
    "pty.",
    "socket.",
    "signal.",
    "mmap.",
    "fcntl.",
    "_thread.start_",
    "exec",
    "compile",
    "marshal.",
    "pickle.",
    "shutil.",
    "tempfile.",
    "glob.",
    "cpython._PySys_ClearAuditHooks",
    "setopencodehook",
    "builtins.input",
    "resource.",
    "syslog.",
    "webbrowser.",
)
_WATCHED_MODULES = (
    "builtins",
    "operator",
    "time",
    "json",
    "torch",
    "torch.cuda",
    "torch.cuda.graphs",
    "torch.random",
    "torch.testing",
    "statistics",
    "math",
    "random",
)
_WATCHED_CLASSES = (("torch.cuda", "Event"), ("torch.cuda", "Stream"), ("torch", "Tensor"), ("torch", "Generator"))
_REPLACED_BY_COMPILER = ("torch", "", "manual_seed")
"""Importing torch's compiler wraps it; the harness calls the one in `torch.random`."""
_Space = tuple[str, str]
"""A module, and a class of it or nothing."""
_Watched = dict[_Space, dict[str, object]]
_Lookup = Callable[[_Space], Mapping[str, object]]
_TASKS = "/proc/self/task"
_ALL_CHILDREN = 0x40000000
"""__WALL of wait.h: those too that tell nobody of their end."""
_TICKS = 0.02
"""Seconds of wall time that are needed to tell: the kernel counts in ticks of 10 ms."""
_BUSY_SHARE = 0.5
"""Of the wall time that other threads may have computed in while calls were timed."""


class Guard:
    """Watches one Solution; `arm` before its code is imported."""

    def __init__(self, own: Path, tell: int) -> None:
        """Watch code whose files lie in `own`; `tell` is the open pipe to the judge."""
        self._relied_on: dict[_Space, dict[str, object]] = {}
        """What timing and checking call, by where its name is looked up; held, so that nothing else gets its identity."""
        self._seen: dict[_Space, dict[str, object]] = {}
        """All names there when they were last looked at one by one, which takes milliseconds."""
        self._names_in = _make_lookup()
        self._find_patched = _make_finder(self._names_in)
        sys.addaudithook(_make_hook(str(own) + os.sep, tell))

    def remember(self) -> None:
        """Remember what the functions are that timing and checking rely on."""
        harness = [(name, "") for name in sys.modules if name.startswith("fib_tools.")]
        for space in (*((name, "") for name in _WATCHED_MODULES), *_WATCHED_CLASSES, *harness):
            names = dict(self._names_in(space))
            self._seen[space] = names
            self._relied_on[space] = {key: value for key, value in names.items() if _is_relied_on(space, key, value)}

    def find_patched(self) -> list[str]:
        """Name those that are something else by now."""
        return self._find_patched(self._relied_on, self._seen)

    def count_tasks(self) -> tuple[int, int]:
        """Count the threads and the children of this process."""
        return _count_tasks()

    def describe_threads(self, before: tuple[int, int]) -> str | None:
        """Say what runs that did not before, or which Python threads there are beside the main one."""
        threads, children = _count_tasks()
        named = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        if named:
            return f"Python threads run beside the main one: {', '.join(named[:3])}"
        if children:
            return f"{children} child processes run during the calls"
        if threads > before[0]:
            return (
                f"{threads - before[0]} threads more run after the calls than before them: {', '.join(_name_threads())}"
            )
        return None


class BusyWatch:
    """Compares the CPU time of all other threads with the wall time of a stretch of calls."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._others = _other_cpu_seconds()

    def describe(self) -> str | None:
        """Say how much other threads computed, if that is more than a driver's do."""
        wall = time.perf_counter() - self._wall
        share = (_other_cpu_seconds() - self._others) / wall if wall > _TICKS else 0.0
        return f"other threads computed {share:.0%} of the time of the calls" if share > _BUSY_SHARE else None


def _make_hook(own: str, tell: int) -> Callable[[str, tuple[Any, ...]], None]:
    """Make a hook that holds all it needs itself, so that no patched name changes what it does."""
    write, forbidden, limit = os.write, (*_FORBIDDEN, "open"), 200
    frame_of, thread_of = sys._getframe, threading.get_ident  # noqa: SLF001  # no public way to the caller's frame
    told: set[str] = set()
    looking: set[int] = set()
    """Threads in which the hook itself looks at frames, which are events too."""

    def find_place(frame: FrameType | None) -> str | None:
        """Say where the Solution is, if the nearest frame that is not the import system's is its own."""
        while frame is not None and frame.f_code.co_filename.startswith("<frozen"):
            if "importlib" in frame.f_code.co_filename:
                return None
            frame = frame.f_back
        if frame is None or not frame.f_code.co_filename.startswith(own):
            return None
        return f"{frame.f_code.co_filename[len(own) :]}:{frame.f_lineno}"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        thread = thread_of()
        if event in told or thread in looking or not event.startswith(forbidden):
            return
        looking.add(thread)
        try:
            place = find_place(frame_of(1))
            if place is not None and len(told) < limit:
                told.add(event)
                write(tell, f"{event} {arguments!r:.60} at {place}".encode(errors="replace")[:300] + b"\n")
        finally:
            looking.discard(thread)

    return hook


def _is_relied_on(space: _Space, name: str, value: object) -> bool:
    is_private = space == ("torch", "") and name.startswith("_")
    return callable(value) and not is_private and (*space, name) != _REPLACED_BY_COMPILER


def _make_lookup() -> _Lookup:
    """Make what gives the names of a module or a class; it holds all it needs itself, as does the comparison."""
    look_up, read, modules, kinds, is_a = getattr, vars, sys.modules, (ModuleType, type), isinstance

    def names_in(space: _Space) -> Mapping[str, object]:
        owner = modules.get(space[0])
        if space[1]:
            owner = look_up(owner, space[1], None)
        return read(owner) if is_a(owner, kinds) else {}

    return names_in


def _make_finder(names_in: _Lookup) -> Callable[[_Watched, _Watched], list[str]]:
    """Make the comparison: a patched name must not be what looks for patched names."""
    is_same, every, each, size, table, text = is_, all, map, len, dict, str.join

    def are_same(before: Mapping[str, object], names: Mapping[str, object]) -> bool:
        """Tell whether the same names, in the same order, stand for the same objects; copied names are the same strings."""
        return (
            size(before) == size(names)
            and every(each(is_same, before.values(), names.values()))
            and every(each(is_same, before, names))
        )

    def find(relied_on: _Watched, seen: _Watched) -> list[str]:
        patched: list[str] = []
        for space, before in relied_on.items():
            names = names_in(space)
            if are_same(seen[space], names):
                continue
            changed = [name for name, value in before.items() if names.get(name) is not value]
            if not changed:
                seen[space] = table(names)
            patched += [text(".", [part for part in (*space, name) if part]) for name in changed]
        patched.sort()
        return patched

    return find


def _count_tasks() -> tuple[int, int]:
    """Count this process's threads, and the processes that they started."""
    threads = _count_threads()
    if threads and not _has_children():
        return (threads, 0)
    try:
        tasks = list(Path(_TASKS).iterdir())
    except OSError:
        return (threading.active_count(), 0)
    children = 0
    for task in tasks:
        try:
            listed = (task / "children").read_text(encoding="utf-8")
        except OSError:
            continue
        children += len(listed.split())
    return (len(tasks), children)


def _count_threads() -> int:
    """Count them by the links of their folder, without a look at each; 0 where that cannot be done."""
    try:
        return stat(_TASKS).st_nlink - 2  # noqa: PTH116  # a Path could be replaced
    except OSError:
        return 0


def _has_children() -> bool:
    """Tell whether any thread has a child, of whatever kind, that nobody has waited for."""
    try:
        waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _ALL_CHILDREN)
    except ChildProcessError:
        return False
    except OSError:
        return True
    return True


def _name_threads() -> list[str]:
    names = []
    for task in Path(_TASKS).iterdir():
        with suppress(OSError):
            names.append((task / "comm").read_text(encoding="utf-8").strip())
    return sorted(names)


def _other_cpu_seconds() -> float:
    """Sum the CPU time of this process's threads but the calling one."""
    return time.process_time() - time.thread_time()
