from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fib_tools.errors import LockedError
from fib_tools.host.locks import hold

HOLDER = """
import sys, signal
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fib_tools.host.locks import hold
with hold(Path(sys.argv[1]), purpose="collect"):
    print("held", flush=True)
    signal.pause()
"""
ROOT = Path(__file__).parents[2]


def test_a_second_holder_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    with hold(path, purpose="bench"), pytest.raises(LockedError, match=rf"process {os.getpid()} .*'bench'"):
        hold(path, purpose="collect").__enter__()


def test_a_released_lock_can_be_held_again_and_leaves_no_holder(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    for _ in range(2):
        with hold(path, purpose="bench"):
            assert (tmp_path / "gpu.lock.holder").exists()
    assert not (tmp_path / "gpu.lock.holder").exists()


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    with pytest.raises(KeyError), hold(path, purpose="bench"):
        raise KeyError
    with hold(path, purpose="bench"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(ROOT)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(LockedError, match=f"process {process.pid} .*'collect'"):
                hold(path, purpose="bench").__enter__()
        finally:
            process.send_signal(signal.SIGKILL)
    with hold(path, purpose="bench"):
        pass


def test_an_unreadable_holder_record_does_not_hide_that_it_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    with hold(path, purpose="bench"):
        (tmp_path / "gpu.lock.holder").write_text("{", encoding="utf-8")
        with pytest.raises(LockedError, match="another process"):
            hold(path, purpose="collect").__enter__()
