from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fib_tools.errors import ChildCrashedError, RequestError
from fib_tools.host.gpu_lock import Lease, acquire
from fib_tools.host.gpu_run import find_program, run_on_gpus
from fib_tools.host.gpu_status import read_status
from gpu_requests import ROOT, SCRIPT, Asker


@pytest.fixture(autouse=True)
def _pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "FIB_GPU_LEASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FIB_PRETEND_GPUS", "2")
    monkeypatch.setenv("FIB_GPU_LOCK_DIR", str(tmp_path / "locks"))


def run(*command: str, limit: float | None = None, grace: float = 10.0) -> int:
    with acquire(1) as lease:
        return run_on_gpus(lease, command, exec_timeout=limit, grace=grace)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", code)


def is_free(count: int) -> bool:
    """Wait, on the kernel's word, until so many GPUs can be had."""
    with acquire(count, timeout=30) as lease:
        return len(lease.gpus) == count


def is_held() -> bool:
    return all(state.leases for state in read_status().gpus)


@pytest.mark.parametrize(
    ("code", "status"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_the_exit_status_is_the_commands(code: str, status: int) -> None:
    assert run("sh", "-c", code) == status


def test_a_program_that_cannot_be_run_has_the_shells_status(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("", encoding="utf-8")
    assert run(str(tmp_path / "missing")) == 127
    assert run(str(tmp_path / "plain")) == 126
    assert is_free(2)


def test_a_program_is_looked_for_before_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="'sh'"):
        find_program(["sh"])
    with pytest.raises(RequestError, match="no command"):
        find_program([])
    find_program(["/bin/sh"])


def test_the_command_sees_its_gpus_and_runs_in_a_group_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['CUDA_DEVICE_ORDER'], os.getpgrp() == os.getpid())"
    assert run(*python(code)) == 0
    assert capfd.readouterr().out == "GPU-pretend-0 PCI_BUS_ID True\n"


def test_input_and_output_pass_through() -> None:
    with Asker(1, ("cat",)) as asker:
        out, err = asker.process.communicate("one line\n", timeout=30)
        assert (out, err, asker.process.returncode) == ("one line\n", "", 0)


def test_zero_gpus_run_a_command_that_sees_none(capfd: pytest.CaptureFixture[str]) -> None:
    with acquire(0) as lease:
        assert run_on_gpus(lease, ["sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]"]) == 0
    assert capfd.readouterr().out == "[]\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_wrapper_reaches_the_command(number: signal.Signals) -> None:
    code = f"""
import signal, sys
signal.signal({int(number)}, lambda *_: sys.exit(9))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [{int(number)}])
print("ready", flush=True)
while True: signal.pause()
"""
    with Asker(1, ("env", "--default-signal", *python(code))) as asker:
        # where tests run in the background, SIGINT is ignored from the start, and rightly stays so
        ignored = signal.getsignal(number) is signal.SIG_IGN
        assert asker.hear() == "ready"
        os.kill(asker.pid, signal.SIGTERM if ignored else number)
        assert asker.process.wait(timeout=30) == (143 if ignored else 9)


def test_a_signal_from_outside_ends_the_command_as_by_itself() -> None:
    with Asker(1) as asker:
        assert asker.hear()
        asker.process.terminate()
        assert asker.process.wait(timeout=30) == 143
    assert is_free(2)


def test_a_killed_wrapper_leaves_its_command_running_under_the_lock(is_gone: Callable[[int], bool]) -> None:
    with Asker(2) as asker:
        command = int(asker.hear().split()[0])
        asker.kill()
        assert is_held()
        os.kill(command, 0)
        asker.release()
        assert is_gone(command)
    assert is_free(2)


def test_a_killed_command_gives_the_gpus_back() -> None:
    with Asker(2) as asker:
        os.kill(int(asker.hear().split()[0]), signal.SIGKILL)
        assert asker.process.wait(timeout=30) == 137
    assert is_free(2)


BACKGROUND = """
import os, signal, sys
if os.fork() == 0:
    {prologue}
    os.dup2(os.open("/dev/null", os.O_RDWR), 1)
    os.close(2)
    os.write({pipe}, str(os.getpid()).encode())
    open({fifo!r}).read()
    os._exit(0)
if {dies}:
    os.kill(os.getpid(), signal.SIGKILL)
"""
CLOSES_ALL = (
    "[os.close(int(fd)) for fd in os.listdir('/proc/self/fd') if int(fd) > 2 and os.path.exists('/proc/self/fd/' + fd)]"
)


@pytest.mark.parametrize("prologue", ["pass", CLOSES_ALL, f"os.setsid(); {CLOSES_ALL}"])
@pytest.mark.parametrize("dies", [False, True])
def test_a_child_in_the_background_keeps_the_gpus_whatever_it_closes(
    prologue: str, tmp_path: Path, *, dies: bool
) -> None:
    fifo = tmp_path / "until"
    os.mkfifo(fifo)
    code = BACKGROUND.format(prologue=prologue, pipe=0, fifo=str(fifo), dies=dies)
    reading, writing = os.pipe()
    os.dup2(writing, writing, inheritable=True)
    with acquire(2) as lease:
        saved = os.dup(0)
        os.dup2(writing, 0)
        try:
            assert run_on_gpus(lease, python(code)) == (137 if dies else 0)
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    child = int(os.read(reading, 20))
    os.close(reading)
    os.close(writing)
    assert is_held()
    assert child in {process.pid for process in read_status().holders[0].processes}
    with fifo.open("w"):
        pass
    assert is_free(2)


def test_whoever_reads_the_output_does_not_wait_for_the_keeper(tmp_path: Path) -> None:
    fifo = tmp_path / "until"
    os.mkfifo(fifo)
    with Asker(2, ("sh", "-c", f"cat {fifo} >/dev/null 2>&1 </dev/null & echo done")) as asker:
        out, err = asker.process.communicate(timeout=30)
        assert (out, err, asker.process.returncode) == ("done\n", "", 0)
        assert is_held()
        with fifo.open("w"):
            pass
        assert is_free(2)


def test_a_command_keeps_its_gpus_when_the_keeper_is_killed() -> None:
    with Asker(2, ("sh", "-c", "echo $PPID; read line")) as asker:
        os.kill(int(asker.hear()), signal.SIGKILL)
        assert asker.process.wait(timeout=30) == 1
        assert is_held()
        asker.release()
        assert asker.process.stderr is not None
        assert "the keeper of the lock was killed" in asker.process.stderr.read()
    assert is_free(2)


def test_a_keeper_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    lease = Lease(gpus=(), environment={}, descriptors=())
    with pytest.raises(ChildCrashedError, match="did not start"):
        run_on_gpus(lease, ["true"])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ChildCrashedError, match="did not start"):
        run_on_gpus(lease, ["true"])


def test_past_the_limit_a_command_gets_sigterm(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(print('asked')))\nwhile True: signal.pause()"
    assert run(*python(code), limit=1.0) == 124
    assert capfd.readouterr().out == "asked\n"
    assert is_free(2)


def test_past_the_grace_period_everything_is_killed(
    capfd: pytest.CaptureFixture[str], is_gone: Callable[[int], bool]
) -> None:
    code = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
for leaves in (False, True):
    if os.fork() == 0:
        if leaves:
            os.setsid()
        print(os.getpid(), flush=True)
        while True:
            signal.pause()
while True:
    signal.pause()
"""
    assert run(*python(code), limit=0.5, grace=0.2) == 124
    pids = [int(line) for line in capfd.readouterr().out.split()]
    assert len(pids) == 3
    assert [is_gone(pid) for pid in pids] == [True] * 3
    assert is_free(2)


def test_the_limit_holds_for_a_child_in_the_background_and_after_the_wrappers_death(
    is_gone: Callable[[int], bool],
) -> None:
    code = python("""
import os, signal
child = os.fork()
while child == 0:
    signal.pause()
print(os.getpid(), child, flush=True)
input()
""")
    with Asker(2, code, limit=1.0, grace=0.1) as asker:
        command, child = map(int, asker.hear().split())
        os.kill(asker.pid, signal.SIGSTOP)  # so that it dies with words of the keeper unread
        assert asker.process.stdin is not None
        asker.process.stdin.write("\n")
        asker.process.stdin.flush()
        assert is_gone(command)
        asker.kill()
        assert is_gone(child)
    assert is_free(2)


def test_a_lease_can_be_used_from_a_thread(capfd: pytest.CaptureFixture[str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, "echo", "here").result(timeout=30) == 0
    assert capfd.readouterr().out == "here\n"


def test_signals_are_as_before_afterwards() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, [])
    run("true")
    assert ([signal.getsignal(number) for number in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, [])) == before


AT_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for number in (signal.SIGINT, signal.SIGTSTP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A program that leads a session at a terminal of its own, as a shell or what it starts."""

    def __init__(self, *program: str) -> None:
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", AT_TERMINAL, *program],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.buffer = b""

    def read_until(self, word: bytes) -> None:
        while word not in self.buffer:
            self.buffer += os.read(self.master, 1024)
        self.buffer = self.buffer.partition(word)[2]

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> int:
        status = self.process.wait(timeout=30)
        os.close(self.master)
        return status


def wrapper_at_terminal(code: str) -> Terminal:
    return Terminal(sys.executable, "-c", SCRIPT, str(ROOT), "1", "", "10", "sh", "-c", code)


def test_at_a_terminal_the_command_can_read_and_be_interrupted() -> None:
    terminal = wrapper_at_terminal("trap 'echo caught; exit 5' INT; echo ready; read line; echo got $line; read line")
    terminal.read_until(b"ready")
    terminal.press(b"words\n")
    terminal.read_until(b"got words")
    terminal.press(b"\x03")
    terminal.read_until(b"caught")
    assert terminal.close() == 5
    assert is_free(2)


def test_at_a_terminal_the_command_is_stopped_and_goes_on_with_its_wrapper() -> None:
    terminal = wrapper_at_terminal("echo ready; read line; echo got $line")
    terminal.read_until(b"ready")
    terminal.press(b"\x1a")
    assert os.WIFSTOPPED(os.waitpid(terminal.process.pid, os.WUNTRACED)[1])
    assert os.tcgetpgrp(terminal.master) == terminal.process.pid
    terminal.process.send_signal(signal.SIGCONT)
    terminal.press(b"words\n")
    terminal.read_until(b"got words")
    assert terminal.close() == 0


def test_a_command_in_a_pipeline_does_not_take_the_terminal_from_the_others() -> None:
    wrapper = f"'{sys.executable}' -c \"$0\" '{ROOT}' 1 '' 10 echo from a pipe"
    terminal = Terminal("/bin/sh", "-c", f"{wrapper} | cat; read line; echo got $line", SCRIPT)
    terminal.read_until(b"from a pipe")
    terminal.press(b"words\n")
    terminal.read_until(b"got words")
    assert terminal.close() == 0
