"""The keeper: stands between `fib gpu-lock` and its command, and holds the GPUs until nothing of the command is left.

Commands often close what they inherit before they start children of their own (Python's `subprocess` and
`multiprocessing` do), so that the lock's descriptors do not reach those. The keeper has them, adopts every orphan of the
command, and ends after the last. It lives on when the wrapper is killed, and enforces the time limit then as well.

It speaks over one socket. To the wrapper, lines: `started GROUP`, `stopped`, `failed ERRNO`, `ended STATUS`, `late`. From the wrapper:
single bytes, each the number of a signal for the command.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time

from fib_tools.host._linux import adopt_orphans

__all__ = ["HELD_BACK", "Keeper", "main"]

HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that the wrapper passes on, and that do not end the keeper."""
_KILL_SECONDS = 0.1
"""How often what is left after SIGKILL is killed again, since it may have forked meanwhile."""

_KILLS = 50
"""After so many, the wrapper is told all the same: what a GPU driver does not let die keeps the lock."""


class Keeper:
    """One command with all that it starts."""

    def __init__(self, control: socket.socket, *, limit: float, grace: float, takes_terminal: bool) -> None:
        self._control = control
        self._grace = grace
        self._takes_terminal = takes_terminal
        self._limit = limit
        self._next_step = float("inf")
        self._is_late = False
        self._kills = 0
        self._command: int | None = None
        """Its process id, which is its group's; None after its end."""

    def run(self, args: list[str], descriptors: tuple[int, ...]) -> None:
        """Run the command, and return after its last descendant has ended."""
        waker, wakened = socket.socketpair()
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *HELD_BACK):
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGCHLD:
                signal.signal(number, _wake)  # a handler, unlike SIG_IGN, is not inherited by the command
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        try:
            # kept, since a Popen that is dropped would bury the command behind our back
            process = subprocess.Popen(  # noqa: S603  # the user's own command
                args,
                pass_fds=descriptors,
                preexec_fn=self._prepare,  # noqa: PLW1509  # this process has one thread
            )
        except OSError as error:
            self._tell(f"failed {error.errno}")
            return
        self._command = process.pid
        self._tell(f"started {process.pid}")
        self._next_step = time.monotonic() + self._limit
        _let_go_of_streams()
        with selectors.DefaultSelector() as selector:
            selector.register(wakened, selectors.EVENT_READ)
            selector.register(self._control, selectors.EVENT_READ)
            while self._reap():
                self._enforce()
                for key, _ in selector.select(max(0.0, min(self._next_step - time.monotonic(), 3600.0))):
                    if key.fileobj is wakened:
                        wakened.recv(64)
                    elif not self._obey():
                        selector.unregister(self._control)  # the wrapper has gone; its command has not

    def _prepare(self) -> None:
        """Give the command, not yet begun, a group of its own, and the terminal if the wrapper had it."""
        os.setpgid(0, 0)
        if self._takes_terminal:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
            with contextlib.suppress(OSError):
                os.tcsetpgrp(0, os.getpgrp())
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTTOU])

    def _reap(self) -> bool:
        """Bury who has died; False if nobody is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                self._tell("late")  # the wrapper reads on only if the time limit was passed
                return False
            if pid == 0:
                return True
            if pid == self._command and os.WIFSTOPPED(status):
                self._tell("stopped")
            elif pid == self._command:
                self._command = None
                if not self._is_late:
                    self._tell(f"ended {os.waitstatus_to_exitcode(status)}")

    def _obey(self) -> bool:
        """Pass on the signals that the wrapper sends; False if it has gone."""
        try:
            numbers = self._control.recv(64)
        except ConnectionResetError:  # it was killed with words of ours unread
            return False
        self._forward(numbers)
        return bool(numbers)

    def _forward(self, numbers: bytes) -> None:
        for number in numbers:
            if self._command is not None:  # not reaped, so that its id cannot be another's
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._command, number)

    def _enforce(self) -> None:
        """After the time limit: SIGTERM to everyone, after the grace period SIGKILL, until nobody is left."""
        now = time.monotonic()
        if now < self._next_step:
            return
        if self._is_late:
            self._signal_all(signal.SIGKILL)
            self._kills += 1
            if self._kills == _KILLS:
                self._tell("late")
            self._next_step = now + _KILL_SECONDS
        else:
            self._is_late = True
            self._signal_all(signal.SIGTERM)
            self._signal_all(signal.SIGCONT)
            self._next_step = now + self._grace

    def _signal_all(self, number: int) -> None:
        # rarely needed, and its imports would double the time a keeper takes to start
        from fib_tools.host.process_tree import list_descendants, list_processes

        self._forward(bytes([number]))
        others = list_descendants([os.getpid()], list_processes()) - {os.getpid(), self._command}
        for pid in others:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(pid) != self._command:
                    os.kill(pid, number)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(f"{line}\n".encode())


def _wake(_number: int, _frame: object) -> None:
    """Let the selector return."""


def _let_go_of_streams() -> None:
    """Close the command's input and output here: their readers wait for the command, not for its keeper."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def main(arguments: list[str]) -> None:
    """Begin: become nobody's child, so that nobody has to wait, in a group that the terminal's signals do not reach."""
    control, limit, grace, terminal, descriptors, *command = arguments
    if os.fork():
        os._exit(0)
    os.setpgid(0, 0)
    adopt_orphans()
    keeper = Keeper(
        socket.socket(fileno=int(control)), limit=float(limit), grace=float(grace), takes_terminal=terminal == "1"
    )
    held = tuple(int(number) for number in descriptors.split(",") if number)
    keeper.run(command, held)


if __name__ == "__main__":
    main(sys.argv[1:])
