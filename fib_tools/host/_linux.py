"""The few Linux system calls that isolation needs and Python does not offer.

Sources: man pages prctl(2), unshare(2), setns(2), capset(2), user_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

__all__ = [
    "adopt_orphans",
    "die_with_parent",
    "drop_capabilities",
    "enter_namespaces",
    "forbid_new_privileges",
    "is_linux",
    "join_pid_namespace",
    "libc",
    "new_pid_namespace",
    "prctl",
]

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LAST_CAPABILITY_EVER = 63  # two 32-bit words in capset(2); unknown ones answer EINVAL
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_SIGKILL = 9


def is_linux() -> bool:
    """Tell whether the system calls of this module exist here."""
    return sys.platform.startswith("linux")


@cache
def libc() -> ctypes.CDLL:
    """Open the C library of this process once, with errno kept."""
    return ctypes.CDLL(None, use_errno=True)


def prctl(option: int, argument: int = 0, extra: int = 0) -> bool:
    """Set one attribute of this process; False if the kernel refuses."""
    arguments = (ctypes.c_ulong(value) for value in (argument, extra, 0, 0))
    return bool(libc().prctl(option, *arguments) == 0)


def die_with_parent() -> bool:
    """Have the kernel kill this process when the thread that forked it ends."""
    return is_linux() and prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def adopt_orphans() -> bool:
    """Become the parent of descendants whose own parent ended, so that they can be found and killed."""
    return is_linux() and prctl(_PR_SET_CHILD_SUBREAPER, 1)


def forbid_new_privileges() -> bool:
    """Make set-uid files and file capabilities powerless for this process and its children."""
    return is_linux() and prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> bool:
    """Give up every capability, also for programs executed later; root becomes an ordinary user."""
    if not is_linux():
        return False
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(_LAST_CAPABILITY_EVER + 1):
        prctl(_PR_CAPBSET_DROP, capability)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    return bool(libc().capset(ctypes.byref(header), ctypes.byref(nothing)) == 0)


def enter_namespaces() -> bool:
    """Leave the host's network, IPC and (for the next fork) process namespace; all or nothing.

    Must run in a single-threaded process. Containers and some distributions refuse it: then nothing has changed.
    """
    if not is_linux() or not _may_leave_host():
        return False
    _leave_host()
    return True


def _may_leave_host() -> bool:
    """Try it in a fork: root without capabilities gets the namespaces and no user in them, and there is no way back."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _leave_host()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _leave_host() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if libc().unshare(_CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC) != 0:
        raise OSError(ctypes.get_errno(), "unshare refused new namespaces")
    _map_user(uid, gid)


def _map_user(uid: int, gid: int) -> None:
    """Keep the own user and group, which a new user namespace does not know."""
    me = Path("/proc/self")
    (me / "uid_map").write_text(f"{uid} {uid} 1", encoding="utf-8")
    (me / "setgroups").write_text("deny", encoding="utf-8")
    (me / "gid_map").write_text(f"{gid} {gid} 1", encoding="utf-8")


def new_pid_namespace() -> bool:
    """Make the next forked child the first process of a namespace that dies with it."""
    return is_linux() and libc().unshare(_CLONE_NEWPID) == 0


def join_pid_namespace(descriptor: int) -> None:
    """Have later children be born in the namespace behind `descriptor` again."""
    if libc().setns(descriptor, _CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "setns refused to return to the own process namespace")
