"""File access by allow-list, enforced by the kernel (Landlock).

Source: https://docs.kernel.org/userspace-api/landlock.html and linux/landlock.h. System call numbers are the same on
every architecture.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from fib_tools.host._linux import is_linux, libc

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["landlock_abi", "restrict_files"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ALL_OF_ABI_1 = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_TCP_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"  # what _pack_ implies; Python 3.14 wants it said
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_abi() -> int:
    """Ask the kernel for its Landlock version; 0 if it has none."""
    if not is_linux():
        return 0
    return max(0, int(libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)))


def _handled_by(abi: int) -> int:
    later = (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    return _ALL_OF_ABI_1 | later


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what does not exist, or may not be reached, needs no permission
    try:
        allowed = access if path.is_dir() else access & _ON_FILES
        rule = _PathBeneath(allowed, descriptor)
        if libc().syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0) != 0:
            raise OSError(ctypes.get_errno(), "the kernel refused a Landlock rule", str(path))
    finally:
        os.close(descriptor)


def restrict_files(read_only: Iterable[Path], writable: Iterable[Path]) -> int:
    """Deny this process every file but the given trees, for good; needs no_new_privs.

    Where the kernel knows how, TCP, abstract sockets and signals to processes outside are denied too.
    Returns the Landlock version in force, 0 if the kernel has none.
    """
    abi = landlock_abi()
    if abi == 0:
        return 0
    handled = _handled_by(abi)
    network = _TCP_BIND_AND_CONNECT if abi >= 4 else 0
    attributes = _Ruleset(handled, network, _ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0)
    size = ctypes.c_size_t(24 if abi >= 6 else 16 if abi >= 4 else 8)
    ruleset = libc().syscall(_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    if ruleset < 0:
        return 0
    try:
        for path in read_only:
            _allow(ruleset, path, _READ)
        for path in writable:
            _allow(ruleset, path, handled)
        return abi if libc().syscall(_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)
