from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fib_tools.host import process_tree
from fib_tools.host.process_tree import (
    Process,
    describe_process,
    find_writers,
    list_descendants,
    list_processes,
    list_relatives,
)


def test_descendants_are_found_at_any_depth_and_the_dead_are_not() -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1}
    assert list_descendants([10, 99], parents) == {10, 11, 12}
    assert list_descendants([], parents) == set()


def test_relatives_are_ancestors_and_descendants_but_no_siblings() -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        family = list_relatives()
        assert {os.getpid(), os.getppid(), child.pid} <= family
        assert list_processes()[child.pid] == os.getpid()
        child.kill()


def test_a_file_has_those_as_writers_who_opened_it_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    inode = (path.stat().st_dev, path.stat().st_ino)
    with path.open(encoding="utf-8"):
        assert find_writers({inode}) == {inode: []}
        with path.open("a", encoding="utf-8"):
            assert find_writers({inode}) == {inode: [os.getpid()]}


def test_a_process_is_described_without_its_secrets() -> None:
    code = "print('here', flush=True); input()"
    command = [sys.executable, "-I", "-S", "-c", code, "--token", "open-sesame", "y" * 500]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it has its command line by now
        described = describe_process(child.pid, os.getpid())
        child.kill()
    assert "--token *** yyy" in described.command
    assert len(described.command) == 200
    assert (described.pid, described.parent) == (child.pid, os.getpid())


def test_a_system_without_proc_has_no_processes_to_tell_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_tree, "_PROC", tmp_path / "proc")
    assert list_processes() == {}
    assert list_relatives() == {os.getpid()}
    assert find_writers({(1, 2)}) == {(1, 2): []}
    assert describe_process(1, 0) == Process(pid=1, parent=0, command="")
