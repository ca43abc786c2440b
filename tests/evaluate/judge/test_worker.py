from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine_worlds import World
from fib_tools.evaluate.engines.engine import Place
from fib_tools.evaluate.engines.items import Task, find_task
from fib_tools.evaluate.judge import worker as workers
from fib_tools.evaluate.judge.judge import Judgement
from fib_tools.evaluate.judge.worker import Worker
from fib_tools.host.cpu import read_cpu_name

said: list[str] = []


class Contest:
    builds = False
    """Whether it builds, and has begun just now."""
    compiles = False
    """Whether it builds for long."""

    def __init__(self, _maker: Any, task: Task) -> None:
        self.name, self.size = task.definition.name, 1 + len(task.solutions)
        said.append(f"open {self.name}")

    def is_building(self, seconds: float) -> bool:
        return self.builds or (self.compiles and seconds > 60)

    def wait_building(self, _seconds: float) -> None:
        said.append(f"wait {self.name}")
        type(self).builds = False

    def advance(self) -> None:
        pass

    def close(self, *, waits: bool = False) -> None:
        assert not waits
        said.append(f"close {self.name}")


class Judge:
    def __init__(self, *_: Any, **more: Any) -> None:
        self.between, self.settle = more["between"], more["settle"]

    def rehearse(self, task: Task, _tolerances: Any) -> None:
        said.append(f"rehearse {task.definition.name}")

    def judge(self, contest: Contest, _task: Task, **_: Any) -> Judgement:
        said.append(f"judge {contest.name}")
        return Judgement(seed=1, trials=(), reference_ms=None, work=None)

    def close(self) -> None:
        pass


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(workers, "Contest", Contest)
    monkeypatch.setattr(workers, "Judge", Judge)
    said.clear()
    return World.make(tmp_path, {"a": ["x"], "b": ["x"], "c": ["x"], "taken": ["x"]}, workloads=1)


def list_tasks(world: World) -> dict[str, Task]:
    items = [item.model_copy(update={"solutions": ()}) for item in world.items]
    return {item.definition: find_task(item, world.bundles[item.definition]) for item in items}


def make_worker(world: World) -> Worker:
    worker = Worker(world.plan(read_cpu_name()), Place(name="cpu", device="cpu", hardware=read_cpu_name()))
    worker._device.total_bytes = 1 << 37  # of a GPU: on a CPU one group is prepared at most
    return worker


def test_what_was_prepared_lives_until_it_was_judged_and_is_then_closed(world: World) -> None:
    worker, tasks = make_worker(world), list_tasks(world)
    try:
        worker.prepare(tasks["b"])
        for name in "abc":
            assert list(worker.evaluate(tasks[name])) == []
            if name == "a":
                worker.prepare(tasks["c"])
                worker.prepare(tasks["taken"])
        worker.forget("taken")
    finally:
        worker.close()
    assert said == [
        *("open b", "open a", "judge a", "open c", "open taken"),
        *("close a", "judge b", "close b", "judge c", "close taken", "close c"),
    ]


def test_a_group_begins_to_build_when_those_before_it_have_and_not_once_it_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, tasks = make_worker(world), list_tasks(world)
    try:
        assert list(worker.evaluate(tasks["a"])) == []
        monkeypatch.setattr(Contest, "builds", True)
        for name in ("b", "c", "taken"):
            worker.prepare(tasks[name])
        assert list(worker.evaluate(tasks["b"])) == []
        worker.forget("taken")
        assert said == ["open a", "judge a", "open b", "close a", "judge b"]
        monkeypatch.setattr(Contest, "builds", False)
        worker._judge.between()
        worker._judge.between()
        assert said[5:] == ["open c"]
    finally:
        worker.close()


@pytest.mark.parametrize("builds", [False, True])
def test_what_others_took_is_given_up_when_the_next_group_is_measured(
    world: World, monkeypatch: pytest.MonkeyPatch, *, builds: bool
) -> None:
    worker, tasks = make_worker(world), list_tasks(world)
    try:
        assert list(worker.evaluate(tasks["a"])) == []
        monkeypatch.setattr(Contest, "builds", builds)
        for name in ("taken", "b", "c"):
            worker.prepare(tasks[name])
        assert list(worker.evaluate(tasks["b"])) == []
        monkeypatch.setattr(Contest, "builds", False)
        worker._judge.between()
    finally:
        worker.close()
    measured = ["close a", "judge b"]
    if builds:
        assert said == ["open a", "judge a", "open b", *measured, "open c", "close b", "close c"]
    else:
        opened = ["open taken", "open b", "open c", "close taken"]
        assert said == ["open a", "judge a", *opened, *measured, "close b", "close c"]


def test_what_may_be_ready_soon_is_waited_for_and_what_compiles_comes_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, tasks = make_worker(world), list_tasks(world)
    worker._kind = "cuda"
    try:
        monkeypatch.setattr(Contest, "builds", True)
        assert worker.is_ready(tasks["a"], 0.0)
        assert said == ["open a", "rehearse a", "wait a"]
        assert list(worker.evaluate(tasks["a"])) == []
        worker.prepare(tasks["b"])
        worker.prepare(tasks["c"])
        monkeypatch.setattr(Contest, "compiles", True)
        assert not worker.is_ready(tasks["b"], 0.0)
        assert worker.is_ready(tasks["a"], 0.0), "it is being measured"
        monkeypatch.setattr(Contest, "compiles", False)
        assert worker.is_ready(tasks["c"], 0.0)
        assert list(worker.evaluate(tasks["c"])) == []
        assert "close b" not in said, "what compiles goes on meanwhile"
        assert worker.is_ready(tasks["b"], 0.0)
    finally:
        worker.close()


def test_doubtful_times_are_taken_again_when_no_other_group_begins_but_compilers_are_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, tasks = make_worker(world), list_tasks(world)
    try:
        worker.prepare(tasks["a"])
        monkeypatch.setattr(Contest, "builds", True)
        worker._judge.settle()
        monkeypatch.setattr(Contest, "compiles", True)
        worker._judge.settle()
        assert said == ["open a", "wait a"]
    finally:
        worker.close()


def test_groups_begin_closer_together_while_another_is_measured_than_while_one_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, tasks = make_worker(world), list_tasks(world)
    worker._kind = "cuda"
    try:
        assert list(worker.evaluate(tasks["a"])) == []
        monkeypatch.setattr(Contest, "is_building", lambda _self, seconds: seconds > 1)  # all began a second ago
        worker.prepare(tasks["b"])
        worker.prepare(tasks["c"])
        assert "open b" not in said
        worker._judge.between()
        worker._judge.between()
        assert said[-2:] == ["open b", "open c"]
    finally:
        worker.close()
