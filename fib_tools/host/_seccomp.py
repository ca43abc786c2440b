"""System calls that isolated code has no use for, refused by a kernel filter (seccomp BPF).

Source: https://docs.kernel.org/userspace-api/seccomp_filter.html, linux/seccomp.h, linux/filter.h and the system call
tables of x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from dataclasses import dataclass

from fib_tools.host._linux import is_linux, prctl

__all__ = ["filter_system_calls"]

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # offsets in struct seccomp_data, little endian
_X32_BIT = 0x40000000  # a second system call table of x86_64 that would bypass the numbers below
_CLONE_THREAD = 0x00010000
_CLONE_NEW_NAMESPACE = 0x7E020000


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    audit_architecture: int
    clone: int
    kill: tuple[int, ...]
    """kill and tgkill: the target process is their first argument."""
    new_process: tuple[int, ...]
    """fork, vfork, execve, execveat, tkill and pidfd_send_signal."""
    socket: int
    always: tuple[int, ...]
    """ptrace and process_vm_*; namespaces, mounts and chroot; bpf, perf, userfaultfd; keys; modules and kexec;
    open_by_handle_at; io_uring (it can open sockets past a filter); pidfd_getfd."""


_SAME_EVERYWHERE = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442)
_TABLES = {
    "x86_64": _Table(
        audit_architecture=0xC000003E,
        clone=56,
        kill=(62, 234),
        new_process=(57, 58, 59, 322, 200, 424),
        socket=41,
        always=(
            101,
            310,
            311,
            272,
            308,
            165,
            166,
            155,
            161,
            321,
            298,
            323,
            248,
            249,
            250,
            *(175, 313, 176, 246, 320, 304),
            *_SAME_EVERYWHERE,
        ),
    ),
    "aarch64": _Table(
        audit_architecture=0xC00000B7,
        clone=220,
        kill=(129, 131),
        new_process=(221, 281, 130, 424),
        socket=198,
        always=(
            117,
            270,
            271,
            97,
            268,
            40,
            39,
            41,
            51,
            280,
            241,
            282,
            217,
            218,
            219,
            *(105, 273, 106, 104, 294, 265),
            *_SAME_EVERYWHERE,
        ),
    ),
}
_CLONE3 = 435
_AF_UNIX = 1


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


_Code = list[tuple[int, int, int, int]]


def _refuse(number: int, error: int) -> _Code:
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)]


def _on_first_argument(number: int, body: _Code) -> _Code:
    return [(_EQUAL, 0, 1 + len(body), number), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT), *body]


def _only_own_process(number: int) -> _Code:
    verdict = [(_EQUAL, 0, 1, os.getpid()), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    return _on_first_argument(number, verdict)


def _clone(number: int, *, may_fork: bool) -> _Code:
    refusal = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    namespaces = [(_ANY_BIT, 0, 1, _CLONE_NEW_NAMESPACE), refusal]
    threads_only = [] if may_fork else [(_ANY_BIT, 1, 0, _CLONE_THREAD), refusal]
    return _on_first_argument(number, [*namespaces, *threads_only, (_RETURN, 0, 0, _ALLOW)])


def _sockets(number: int, *, local: bool) -> _Code:
    """Refuse sockets; with `local`, all but those of this machine, by which CUDA's driver hands its descriptors on."""
    if not local:
        return _refuse(number, errno.EACCES)
    verdict = [(_EQUAL, 0, 1, _AF_UNIX), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EACCES)]
    return _on_first_argument(number, verdict)


def _program(table: _Table, *, may_fork: bool, local_sockets: bool) -> _Code:
    code = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_EQUAL, 1, 0, table.audit_architecture), (_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, _NUMBER_AT), (_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
    for number in table.always:
        code += _refuse(number, errno.EACCES)
    code += _sockets(table.socket, local=local_sockets)
    # the flags of clone3 lie behind a pointer a filter cannot follow: as if unknown, so that the C library uses clone
    code += _refuse(_CLONE3, errno.ENOSYS)
    if not may_fork:
        for number in table.new_process:
            code += _refuse(number, errno.EPERM)
        for number in table.kill:
            code += _only_own_process(number)
    code += _clone(table.clone, may_fork=may_fork)
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def filter_system_calls(*, may_fork: bool, local_sockets: bool = False) -> bool:
    """Refuse sockets, tracing, namespaces and (unless `may_fork`) new processes for good; needs no_new_privs.

    False where the kernel or the architecture has no such filter.
    """
    table = _TABLES.get(platform.machine())
    if table is None or not is_linux():
        return False
    code = _program(table, may_fork=may_fork, local_sockets=local_sockets)
    instructions = (_Instruction * len(code))(*(_Instruction(*line) for line in code))
    program = _Program(len(code), ctypes.cast(instructions, ctypes.POINTER(_Instruction)))
    return prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program))
