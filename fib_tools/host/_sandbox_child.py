"""The warm process: imports once, then forks one confined grandchild for each job.

It speaks lines of JSON with its parent over one socket. From the parent: `run` (job, entry, limits, paths) and `kill`
(job). To the parent: `ready` or `failed`, then for each job `started` or `refused`, and `ended` with its wait status.
It never runs a job's code itself, and it ends when the parent's end of the socket closes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import selectors
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.host._linux import (
    adopt_orphans,
    die_with_parent,
    enter_namespaces,
    join_pid_namespace,
    new_pid_namespace,
)
from fib_tools.host._sandbox_job import Job, run_job
from fib_tools.host.confinement import Limits, interpreter_paths

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]


class _Warm:
    def __init__(self, control: socket.socket, setup: dict[str, Any], *, namespaced: bool) -> None:
        self._control = control
        self._namespaced = namespaced
        self._own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY) if namespaced else -1
        self._running: dict[int, int] = {}
        """Process id of each job's first process, and its job."""
        self._reports: dict[int, int] = {}
        """The pipe of each job that has not told its protections yet."""
        self._adopts = not namespaced and adopt_orphans()
        self._received = b""
        self._channels: list[int] = []
        """Sockets of sessions, in the order of the messages that ask for them."""
        self._selector = selectors.DefaultSelector()
        self._is_over = False
        root = Path(setup["package_root"])
        # in the order of whoever asks: where a package lies in two places, jobs must see the one that he sees
        sys.path[:] = dict.fromkeys([*sys.path[:1], *setup["import_paths"], *sys.path[1:]])
        for name in setup["preload"]:
            importlib.import_module(name)
        self._read_only = (*interpreter_paths(root), *map(Path, setup["readable"]))

    def serve(self) -> None:
        waker, wakened = socket.socketpair()
        waker.setblocking(False)
        wakened.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # the collector of a fork leaves the shared pages alone
        self._selector.register(self._control, selectors.EVENT_READ, self._obey)
        self._selector.register(wakened, selectors.EVENT_READ, lambda: _drain(wakened))
        self._send({"event": "ready"})
        try:
            while not self._is_over:
                for key, _ in self._selector.select():
                    if key.fileobj in self._selector.get_map():
                        key.data()
                self._reap()
        finally:
            for pid in self._running:
                _kill(pid)
            self._running.clear()
            self._reap()
            self._kill_orphans()

    def _obey(self) -> None:
        data, channels, _, _ = socket.recv_fds(self._control, 1 << 16, 16)
        self._channels += channels
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "kill" in message:
                self._kill_job(message["kill"])
            else:
                self._start(message)
        self._is_over = not data

    def _kill_job(self, job: int) -> None:
        for pid, running in self._running.items():
            if running == job:
                _kill(pid)

    def _start(self, message: dict[str, Any]) -> None:
        job = message["job"]
        channel = self._channels.pop(0) if message.get("session") else None
        descriptors = [os.open(message[name], flags) for name, flags in _FILES]
        for name, _ in _FILES:
            Path(message[name]).unlink()  # from here on only open descriptors lead to them
        try:
            function = _function(message["entry"])
        except Exception as error:  # noqa: BLE001  # importing runs arbitrary code, and the parent reports what it raised
            self._send({"event": "refused", "job": job, "type": type(error).__name__, "message": str(error)[:4000]})
            return
        else:
            pid, report = self._fork(message, function, (*descriptors, channel))
        finally:
            for descriptor in (*descriptors, *([] if channel is None else [channel])):
                os.close(descriptor)
        self._running[pid] = job
        self._reports[job] = report
        self._selector.register(report, selectors.EVENT_READ, lambda: self._tell_start(job, pid))

    def _tell_start(self, job: int, pid: int) -> None:
        """Pass on what the job said before its code ran; one write is one read for so short a text."""
        report = self._reports.pop(job)
        self._selector.unregister(report)
        protections = os.read(report, 1 << 16)
        os.close(report)
        self._send({"event": "started", "job": job, "pid": pid, "protections": json.loads(protections or b"{}")})

    def _fork(
        self, message: dict[str, Any], function: Callable[..., Any], descriptors: tuple[int | None, ...]
    ) -> tuple[int, int]:
        read, write = os.pipe()
        payload, answer, output = (int(descriptor or 0) for descriptor in descriptors[:3])
        job = Job(
            function=function,
            limits=Limits(**message["limits"]),
            read_only=self._read_only,
            scratch=Path(message["scratch"]),
            payload=payload,
            answer=answer,
            output=output,
            report=write,
            channel=descriptors[3],
            own_network=self._namespaced,
            own_processes=self._namespaced and new_pid_namespace(),
        )
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            run_job(job)
        os.close(write)
        if job.own_processes:
            join_pid_namespace(self._own_namespace)
        return pid, read

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = self._running.pop(pid, None)
            if job is not None:
                _kill_group(pid)
                self._kill_orphans()
                if job in self._reports:
                    self._tell_start(job, pid)
                self._send({"event": "ended", "job": job, "status": os.waitstatus_to_exitcode(status)})

    def _kill_orphans(self) -> None:
        """Kill what jobs left behind; a process namespace has done so already, this is for where there is none."""
        if self._adopts:
            listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8")
            for pid in {int(child) for child in listed.split()} - self._running.keys():
                _kill(pid)

    def _send(self, message: dict[str, Any]) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")


_FILES = (("payload", os.O_RDONLY), ("answer", os.O_WRONLY), ("output", os.O_WRONLY | os.O_APPEND))


def _drain(wakened: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        wakened.recv(4096)


def _function(entry: str) -> Callable[[Any], Any]:
    function: Callable[[Any], Any] = pkgutil.resolve_name(entry)
    return function


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _kill_group(pid)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _become_first_of_namespace() -> bool:
    """Fork once, as a process namespace begins with a child; the original stays to pass the end on."""
    if not enter_namespaces():
        return False
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        return True
    os.closerange(3, 64)
    os._exit(min(abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), 255))


def main(descriptor: int) -> None:
    """Serve jobs to the parent at the other end of the socket `descriptor`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    with socket.socket(fileno=descriptor) as control:
        setup = json.loads(control.makefile("rb", buffering=0).readline())
        # CUDA's driver does not start in a process namespace without a /proc of its own
        namespaced = not setup["gpu"] and _become_first_of_namespace()
        try:
            warm = _Warm(control, setup, namespaced=namespaced)
        except Exception as error:  # noqa: BLE001  # importing runs arbitrary code, and the parent reports what it raised
            failure = {"event": "failed", "type": type(error).__name__, "message": str(error)[:4000]}
            control.sendall(json.dumps(failure).encode() + b"\n")
            return
        try:
            warm.serve()
        finally:
            shutil.rmtree(setup["folder"], ignore_errors=True)  # the parent may have been killed
