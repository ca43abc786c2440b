from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock
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


@dataclass
class Unsigned:
    """A lock that is held, and how often it was tried."""

    lock: filelock.BaseFileLock
    meanwhile: Callable[[], object] = bool
    tries: int = 0


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


@pytest.fixture
def unsigned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unsigned:
    """A lock of which nobody says that he holds it; what happens `meanwhile` does when it was tried once."""
    other = filelock.FileLock(tmp_path / "gpu.lock")
    other.acquire()
    acquire, found = filelock.FileLock.acquire, Unsigned(other)

    def try_once(lock: filelock.FileLock, *_: float, **__: float) -> object:
        found.tries += 1
        if found.tries == 2:
            found.meanwhile()
        return acquire(lock, 0)

    monkeypatch.setattr("filelock.FileLock.acquire", try_once)
    return found


def test_a_holder_who_has_only_just_begun_is_named_all_the_same(tmp_path: Path, unsigned: Unsigned) -> None:
    said = json.dumps({"pid": 7, "purpose": "a draft", "since": "noon"})
    unsigned.meanwhile = lambda: (tmp_path / "gpu.lock.holder").write_text(said, encoding="utf-8")
    with pytest.raises(LockedError, match="process 7 holds the lock for 'a draft' since noon"):
        hold(tmp_path / "gpu.lock", purpose="bench").__enter__()
    unsigned.lock.release()


def test_a_holder_who_is_about_to_end_is_waited_for(tmp_path: Path, unsigned: Unsigned) -> None:
    unsigned.meanwhile = unsigned.lock.release
    with hold(tmp_path / "gpu.lock", purpose="bench"):
        assert unsigned.tries == 2


def test_an_unreadable_holder_record_does_not_hide_that_it_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    with hold(path, purpose="bench"):
        (tmp_path / "gpu.lock.holder").write_text("{", encoding="utf-8")
        with pytest.raises(LockedError, match="another process"):
            hold(path, purpose="collect").__enter__()
