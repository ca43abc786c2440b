"""A command under a lease: it sees the GPUs it was given, and they are held until all that it started has ended."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fib_tools.errors import ChildCrashedError, RequestError
from fib_tools.host._gpu_keeper import HELD_BACK
from fib_tools.host.env import inherited_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fib_tools.host.gpu_lock import Lease

__all__ = ["TIMED_OUT", "find_program", "run_on_gpus"]

TIMED_OUT = 124
"""As timeout(1) says it."""
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126
_PACKAGE_ROOT = Path(__file__).parents[2]
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); from fib_tools.host._gpu_keeper import main; main(sys.argv[2:])"
)


def find_program(command: Sequence[str]) -> None:
    """Look for the program of a command before anybody waits for it.

    Raises:
        RequestError: there is no command, or no such program.
    """
    if not command:
        raise RequestError("there is no command", todo="write it after --, such as: fib gpu-lock -- python train.py")
    path = inherited_environment({}).get("PATH", os.defpath)
    if shutil.which(command[0], path=path) is None:
        raise RequestError(f"cannot run {command[0]!r}: no such program", todo="check its name and PATH")


def run_on_gpus(lease: Lease, command: Sequence[str], *, exec_timeout: float | None = None, grace: float = 10.0) -> int:
    """Run a command with this process's streams, and return its exit status: 128 + n for signal n, 124 past the limit.

    It runs in a process group of its own, which SIGINT, SIGTERM, SIGHUP and SIGQUIT of this process are passed on to.
    Past `exec_timeout` seconds, everything it started gets SIGTERM, and SIGKILL `grace` seconds later. Children that it
    leaves behind keep the GPUs, also after the lease was given back.

    Raises:
        ChildCrashedError: the process that keeps the lock for it was killed; the command may still run, under the lock.
    """
    ours, theirs = socket.socketpair()
    numbers = ",".join(map(str, lease.descriptors))
    limit = "inf" if exec_timeout is None else f"{exec_timeout:.6f}"
    keeper = [str(theirs.fileno()), limit, f"{grace:.6f}", str(int(_has_terminal())), numbers]
    with ours, _pass_signals_on(ours) as mask:
        try:
            # exits at once; what goes on is its child, which holds the signals back until it can pass them on
            subprocess.run(  # noqa: S603  # the user's own command
                [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, str(_PACKAGE_ROOT), *keeper, *command],
                pass_fds=(theirs.fileno(), *lease.descriptors),
                env=inherited_environment(lease.environment),
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise ChildCrashedError(f"the keeper of the lock did not start: {error}", where=command[0]) from error
        finally:
            theirs.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return _follow(ours, command)


def _follow(control: socket.socket, command: Sequence[str]) -> int:
    group = 0
    with control.makefile("r", encoding="utf-8") as lines:
        for line in lines:
            word, _, number = line.strip().partition(" ")
            if word == "started":
                group = int(number)
            elif word == "stopped":
                _stop(control, group)
            else:
                _move_terminal(group, os.getpgrp())
                return _read_status(word, number)
    _move_terminal(group, os.getpgrp())
    raise ChildCrashedError(
        "the keeper of the lock was killed", where=command[0], todo="see fib gpu-lock --status for what still runs"
    )


def _read_status(word: str, number: str) -> int:
    if word == "ended":
        return int(number) if int(number) >= 0 else 128 - int(number)
    if word == "failed":
        return _NOT_FOUND if int(number) == errno.ENOENT else _NOT_EXECUTABLE
    return TIMED_OUT


def _stop(control: socket.socket, group: int) -> None:
    """Stop as the command was stopped, so that the shell takes over; go on with it when the shell says so."""
    if not os.isatty(0):
        return  # nobody would say so
    _move_terminal(group, os.getpgrp())
    os.kill(os.getpid(), signal.SIGSTOP)
    if _has_terminal():
        _move_terminal(os.getpgrp(), group)
    control.send(bytes([signal.SIGCONT]))


@contextmanager
def _pass_signals_on(control: socket.socket) -> Iterator[set[int | signal.Signals]]:
    """Send each signal that would end this process to the command instead; held back until its mask is put back."""
    if threading.current_thread() is not threading.main_thread():
        yield signal.pthread_sigmask(signal.SIG_BLOCK, [])  # only the main thread can take signals
        return

    def send(number: int, _frame: object) -> None:
        with suppress(OSError):
            control.send(bytes([number]))

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    before = {number: signal.getsignal(number) for number in HELD_BACK}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, send)
        yield mask
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _has_terminal() -> bool:
    """Tell whether this process reads and writes the terminal alone: in a pipeline the terminal is for the others too."""
    with suppress(OSError):
        return os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
    return False


def _move_terminal(owner: int, heir: int) -> None:
    """Make another group the terminal's foreground, if `owner` is it now."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    with suppress(OSError):
        if os.tcgetpgrp(0) == owner:
            os.tcsetpgrp(0, heir)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
