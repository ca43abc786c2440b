"""Have 64 processes fight for 8 pretended GPUs while some are killed with SIGKILL, and check by other means what the lock promises.

python benchmarks/gpu_lock_stress.py [--acquisitions 2000] [--processes 64] [--gpus 8] [--kills 0.3] [--seed 0]

Each process asks for 1, 2, 4 or 8 GPUs and runs a command on them, through the same two calls as `fib gpu-lock`. The command
takes a lock of its own for each GPU it was given, which the kernel frees at its death: if one is taken, two held a GPU. Some
commands leave a child behind that has closed what it inherited, as Python's subprocess does, and goes on using the GPUs.
Killed are, at random moments: waiting wrappers, wrappers with a running command, commands, and keepers of the lock.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fib_tools.errors import ChildCrashedError
from fib_tools.host.gpu_lock import Waiting, acquire
from fib_tools.host.gpu_run import run_on_gpus
from fib_tools.host.gpu_status import read_status

HOLDER = r"""
import fcntl, os, signal, sys, time
folder, count, hold, victim, wrapper = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], int(sys.argv[5])
gpus = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
log = os.open(f"{folder}/log", os.O_WRONLY | os.O_APPEND)
markers = []
good = len(set(gpus)) == count
for gpu in gpus:
    marker = os.open(f"{folder}/{gpu}", os.O_RDWR | os.O_CREAT)
    markers.append(marker)
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        good = False
os.write(log, f"{'got' if good else 'VIOLATION'} {count} {os.getpid()} {','.join(gpus)} {victim}\n".encode())
if victim == "background" and os.fork() == 0:
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in markers:
            try:
                os.close(descriptor)
            except OSError:
                pass
    time.sleep(hold * 2)
    os._exit(0)
time.sleep(hold / 2)
if victim == "wrapper":
    try:
        os.kill(wrapper, signal.SIGKILL)
    except ProcessLookupError:
        pass
if victim == "keeper":
    os.kill(os.getppid(), signal.SIGKILL)
time.sleep(hold / 2)
if victim in ("command", "background"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
SIZES = (1, 1, 1, 1, 2, 2, 4, 8)


def wrap(folder: Path, rng: random.Random, kills: float, gpus: int) -> None:
    """Ask, run the command, and write down how the request fared; never returns."""
    count = min(rng.choice(SIZES), gpus)
    victim = rng.choice(("wrapper", "command", "background", "keeper")) if rng.random() < kills else "nobody"
    first: list[tuple[int, int]] = []

    def report(waiting: Waiting) -> None:
        if not first:
            first.append((waiting.position, time.time_ns()))

    began = time.monotonic()
    with acquire(count, command=f"stress {count}", report=report) as lease:
        granted = os.fstat(lease.descriptors[0]).st_mtime_ns  # written under the mutex, so in the true order
        number = int(lease.environment["FIB_GPU_LEASE"].split("-")[1])
        position, entered = first[0] if first else (1, granted)
        line = f"{count} {position} {number} {entered} {granted} {time.monotonic() - began:.4f}\n"
        log = os.open(folder / "waits", os.O_WRONLY | os.O_APPEND)
        os.write(log, line.encode())
        hold = rng.uniform(0.0, 0.02)
        words = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            HOLDER,
            str(folder),
            str(count),
            f"{hold:.4f}",
            victim,
            str(os.getpid()),
        ]
        with contextlib.suppress(ChildCrashedError):
            run_on_gpus(lease, words)


def launch(folder: Path, seed: int, kills: float, gpus: int) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            wrap(folder, random.Random(seed), kills, gpus)
            status = 0
        finally:
            os._exit(status)
    return pid


class Crowd:
    """The wrappers that run, and those that are to be killed while they wait or hold."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.rng = random.Random(options.seed)
        self.running: dict[int, float] = {}
        self.ended: collections.Counter[str] = collections.Counter()
        self.killed_from_outside = 0

    def fill(self) -> None:
        while len(self.running) < self.options.processes:
            dies = self.rng.random() < self.options.kills / 2
            moment = time.monotonic() + self.rng.uniform(0.0, 2.0) if dies else float("inf")
            pid = launch(self.folder, self.rng.getrandbits(60), self.options.kills, self.options.gpus)
            self.running[pid] = moment

    def kill_due(self) -> None:
        now = time.monotonic()
        for pid, moment in self.running.items():
            if now > moment:
                self.running[pid] = float("inf")
                os.kill(pid, signal.SIGKILL)  # our child and not yet buried: the id is still its own
                self.killed_from_outside += 1

    def bury(self) -> None:
        for pid in list(self.running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                self.ended["killed" if code == -signal.SIGKILL else "done" if code == 0 else "FAILED"] += 1
                del self.running[pid]


def count_lines(path: Path, word: str) -> int:
    return sum(line.startswith(word) for line in path.read_text(encoding="utf-8").splitlines())


def find_overtaking(rows: list[list[str]]) -> int:
    """Count the requests that a later one was served before, while they already waited."""
    grants = [(int(row[2]), int(row[3]), int(row[4])) for row in rows]
    return sum(
        any(other > number and entered < moment < granted for other, _, moment in grants)
        for number, entered, granted in grants
    )


def find_lost(folder: Path, gpus: int) -> list[str]:
    """Name what is still held after everything has ended, or cannot be had."""
    deadline = time.monotonic() + 20
    while (status := read_status()).holders and time.monotonic() < deadline:
        time.sleep(0.05)
    lost = [f"{holder.gpus} by {holder.processes}" for holder in status.holders]
    lost += [f"a waiter {waiter.pid}" for waiter in status.waiters]
    with acquire(gpus, wait=False) as lease:
        for gpu in lease.gpus:
            with (folder / gpu.uuid).open("a") as marker:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lost += [f"the file {path.name}" for path in (folder / "locks").iterdir() if path.name != "mutex"]
    return lost


def print_table(rows: list[list[str]]) -> None:
    print("GPUs asked  served  place at entry (mean, max)  wait in s (median, max)")
    for size in sorted({int(row[0]) for row in rows}):
        own = [row for row in rows if int(row[0]) == size]
        places, waits = [int(row[1]) for row in own], [float(row[5]) for row in own]
        print(
            f"{size:10d}  {len(own):6d}  {statistics.mean(places):18.1f} {max(places):6d}"
            f"  {statistics.median(waits):16.2f} {max(waits):5.2f}"
        )


def time_uncontended(times: int) -> float:
    """Take and give back one GPU that nobody else wants, without a command; return how often a second."""
    began = time.perf_counter()
    for _ in range(times):
        with acquire(1):
            pass
    return times / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--acquisitions", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--kills", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fib-stress-") as name:
        return run(Path(name), options)


def run(folder: Path, options: argparse.Namespace) -> int:
    os.environ |= {"FIB_PRETEND_GPUS": str(options.gpus), "FIB_GPU_LOCK_DIR": str(folder / "locks")}
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ.pop("FIB_GPU_LEASE", None)
    log, waits = folder / "log", folder / "waits"
    log.touch()
    waits.touch()
    print(f"alone, without a command: {time_uncontended(1000):.0f} acquisitions a second")
    crowd = Crowd(folder, options)
    began = time.perf_counter()
    while count_lines(log, "got") < options.acquisitions:
        crowd.fill()
        for _ in range(20):
            time.sleep(0.005)
            crowd.kill_due()
            crowd.bury()
    seconds = time.perf_counter() - began
    served = count_lines(log, "got")
    while crowd.running:
        time.sleep(0.01)
        crowd.kill_due()
        crowd.bury()
    lost = find_lost(folder, options.gpus)
    rows = [line.split() for line in waits.read_text(encoding="utf-8").splitlines()]
    violations, overtaken = count_lines(log, "VIOLATION"), find_overtaking(rows)
    print_table(rows)
    print(
        f"{served} acquisitions by {options.processes} processes at a time of {options.gpus} GPUs"
        f" in {seconds:.1f} s: {served / seconds:.0f} a second"
    )
    victims = collections.Counter(line.split()[4] for line in log.read_text(encoding="utf-8").splitlines())
    print(
        f"killed with SIGKILL: {crowd.killed_from_outside} wrappers, waiting or holding, at random moments;"
        f" while their command held GPUs {victims['wrapper']} wrappers, {victims['keeper']} keepers,"
        f" {victims['command']} commands, {victims['background']} commands with a child left behind"
    )
    print(
        f"two held one GPU: {violations}; requests overtaken: {overtaken}; lost at the end: {', '.join(lost) or 'nothing'};"
        f" wrappers that failed: {crowd.ended['FAILED']}"
    )
    return 1 if violations or overtaken or lost or crowd.ended["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
