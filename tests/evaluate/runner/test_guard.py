from __future__ import annotations

import builtins
import operator
import os
import subprocess
import sys
import threading

import pytest
import torch

from fib_tools.evaluate._runner.guard import Guard


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    made = Guard(tmp_path_factory.mktemp("own"), os.open(os.devnull, os.O_WRONLY))
    made.remember()
    return made


def test_nothing_changed_is_nothing_patched(guard: Guard) -> None:
    assert guard.find_patched() == []


def test_what_the_harness_relies_on_is_named_and_forgiven_once_it_is_back(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    monkeypatch.setattr(torch.cuda.Event, "elapsed_time", lambda *_: 0.001)
    assert guard.find_patched() == ["torch.cuda.Event.elapsed_time", "torch.equal"]
    monkeypatch.undo()
    assert guard.find_patched() == []


def test_names_that_are_new_or_taken_over_by_the_compiler_are_no_patches(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "a_name_of_its_own", print, raising=False)
    monkeypatch.setattr(torch, "manual_seed", print)
    assert guard.find_patched() == []


def test_what_compares_cannot_be_blinded(guard: Guard) -> None:
    kept = operator.is_, builtins.all, builtins.len
    try:
        operator.is_ = lambda *_: True
        builtins.all = lambda *_: True  # type: ignore[assignment]
        found = guard.find_patched()
    finally:
        operator.is_, builtins.all, builtins.len = kept
    assert found == ["builtins.all", "operator.is_"]


def test_threads_and_children_are_counted_while_they_live(guard: Guard) -> None:
    threads, children = guard.count_tasks()
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        during = guard.count_tasks()
        child.communicate()
    over.set()
    thread.join()
    assert children == 0
    assert during == (threads + 1, 1)
    assert guard.count_tasks()[1] == 0  # a thread that was joined may still be ending
