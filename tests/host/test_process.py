from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fib_tools.errors import ChildTimeoutError, MissingDependencyError, StorageError
from fib_tools.host import process
from fib_tools.host.process import run_command

ENVIRONMENT = {"PATH": os.defpath}


def python(code: str, *args: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *args]


def test_output_and_status_come_back(tmp_path: Path) -> None:
    code = "import sys, os; print(os.getcwd()); print('oops', file=sys.stderr); sys.exit(3)"
    completed = run_command(python(code), cwd=tmp_path, timeout=20, env=ENVIRONMENT)
    assert (completed.status, completed.stdout, completed.stderr) == (3, f"{tmp_path.resolve()}\n", "oops\n")


def test_tokens_in_errors_are_masked(tmp_path: Path) -> None:
    token = "hf_" + "abcdefghijklmnop"
    code = "import sys; print(sys.argv[1], file=sys.stderr)"
    assert run_command(python(code, token), cwd=tmp_path, timeout=20, env=ENVIRONMENT).stderr == "***\n"


def test_output_beyond_the_cap_is_dropped_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_OUTPUT_BYTES", 1000)
    completed = run_command(python("print('x' * 1000000)"), cwd=tmp_path, timeout=20, env=ENVIRONMENT)
    assert (len(completed.stdout), completed.is_truncated, completed.status) == (1000, True, 0)


def test_a_command_past_its_time_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_gone: Callable[[int], bool]
) -> None:
    monkeypatch.setattr(process, "_GRACE_SECONDS", 0.2)
    code = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    open("pids", "w").write(f"{os.getpid()} {child}")
signal.pause()
"""
    with pytest.raises(ChildTimeoutError, match="ran past"):
        run_command(python(code), cwd=tmp_path, timeout=2, env=ENVIRONMENT)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text(encoding="utf-8").split()]
    assert [is_gone(pid) for pid in pids] == [True, True]


def test_another_thread_ends_a_command(tmp_path: Path, is_gone: Callable[[int], bool]) -> None:
    pipe, stop = tmp_path / "pipe", threading.Event()
    ended: list[bool] = []
    os.mkfifo(pipe)
    code = "import os, signal; open('pipe', 'w').write(str(os.getpid())); signal.pause()"

    def run() -> None:
        with pytest.raises(KeyboardInterrupt):
            run_command(python(code), cwd=tmp_path, timeout=60, env=ENVIRONMENT, stop=stop)
        ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    pid = int(pipe.read_text(encoding="utf-8"))  # it waits until the command has written
    stop.set()
    thread.join(20)
    assert ended == [True]
    assert is_gone(pid)


def test_a_daemon_that_keeps_the_output_open_does_not_hold_the_command_up(tmp_path: Path) -> None:
    code = "import os, signal\nif os.fork() == 0: signal.pause()\nprint('done', flush=True)"
    assert run_command(python(code), cwd=tmp_path, timeout=20, env=ENVIRONMENT).stdout == "done\n"


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_no_process(tmp_path: Path, is_gone: Callable[[int], bool]) -> None:
    os.mkfifo(tmp_path / "started")
    code = "import os, signal\nopen('started', 'w').write(str(os.getpid()))\nsignal.pause()"
    pids: list[int] = []

    def interrupt() -> None:
        pids.append(int((tmp_path / "started").read_text(encoding="utf-8")))
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_command(python(code), cwd=tmp_path, timeout=20, env=ENVIRONMENT)
    thread.join()
    assert is_gone(pids[0])


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="no-such-program"):
        run_command(["no-such-program"], cwd=tmp_path, timeout=1, env=ENVIRONMENT)


def test_a_missing_folder_is_not_reported_as_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        run_command(["true"], cwd=tmp_path / "missing", timeout=1, env=ENVIRONMENT)
