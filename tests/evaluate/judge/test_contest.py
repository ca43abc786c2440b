from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from engine_worlds import World
from fib_tools.errors import ChildCrashedError
from fib_tools.evaluate.engines.items import find_task
from fib_tools.evaluate.judge.contest import Contest, RunnerMaker
from fib_tools.evaluate.judge.refusal import RefusedError
from fib_tools.model.solution import Solution
from fib_tools.model.trace import EvaluationStatus


@dataclass
class Runner:
    """A process that builds at once, and whose first call goes as it is told."""

    is_dead: bool = False
    is_busy: bool = False
    hangs: bool = False
    failed_to_build: bool = False
    is_closed: bool = False
    build_seconds: float = 0.0
    libs: dict[str, str] = field(default_factory=dict)
    protections: dict[str, bool] = field(default_factory=dict)

    def advance(self) -> None:
        pass

    def finish_build(self, _seconds: float) -> None:
        pass

    def finish_first_call(self, _seconds: float) -> None:
        if self.hangs:
            self.is_dead = True
            raise RefusedError(EvaluationStatus.TIMEOUT, "it did not answer", rule="timeout")

    def close(self) -> None:
        assert not self.is_closed, "its descriptors may be another's by now"
        self.is_closed = True


@dataclass
class Maker:
    made: list[Runner] = field(default_factory=list)
    hangs: bool = False
    is_broken: bool = False

    def make(self, _task: Any, solution: Solution | None) -> Runner:
        if self.is_broken:
            raise ChildCrashedError("the warm process of the sandbox died")
        self.made.append(Runner(hangs=self.hangs and solution is not None))
        return self.made[-1]


def enter(root: Path, maker: Maker) -> Contest:
    world = World.make(root, {"a": ["x"]}, workloads=1)
    return Contest(cast("RunnerMaker", maker), find_task(world.items[0], world.bundles["a"]))


def test_a_solution_that_crashed_is_started_again_while_others_are_measured(tmp_path: Path) -> None:
    maker = Maker()
    contest = enter(tmp_path, maker)
    _, runner = maker.made
    contest.advance()
    assert len(maker.made) == 2
    runner.is_dead = True
    contest.advance()
    contest.advance()
    assert len(maker.made) == 3
    (entrant,) = contest.entrants.values()
    assert contest.ready(entrant, 1.0, first_call=1.0) is cast("Any", maker.made[2])


def test_a_solution_that_hung_is_started_at_its_turn_and_after_the_second_time_no_more(tmp_path: Path) -> None:
    maker = Maker(hangs=True)
    contest = enter(tmp_path, maker)
    (entrant,) = contest.entrants.values()
    for count in (2, 3):
        with pytest.raises(RefusedError, match="it did not answer"):
            contest.ready(entrant, 1.0, first_call=1.0)
        contest.advance()
        assert len(maker.made) == count
        assert maker.made[-1].is_closed, "what hangs would take the device's time from others"
    with pytest.raises(RefusedError, match="2 times: it was not tried again"):
        contest.ready(entrant, 1.0, first_call=1.0)
    assert len(maker.made) == 3


def test_a_solution_whose_build_failed_is_built_again_at_its_turn_and_not_before(tmp_path: Path) -> None:
    maker = Maker()
    contest = enter(tmp_path, maker)
    maker.made[1].is_dead = maker.made[1].failed_to_build = True
    for _ in range(3):
        contest.advance()
    assert len(maker.made) == 2
    (entrant,) = contest.entrants.values()
    assert contest.ready(entrant, 1.0, first_call=1.0) is cast("Any", maker.made[2])


def test_a_runner_is_closed_once_even_where_no_other_can_be_started(tmp_path: Path) -> None:
    maker = Maker()
    contest = enter(tmp_path, maker)
    maker.made[1].is_dead = maker.is_broken = True
    with pytest.raises(ChildCrashedError):
        contest.advance()
    contest.close()
    assert maker.made[1].is_closed


def test_runners_that_build_are_waited_for_for_so_long(tmp_path: Path) -> None:
    maker = Maker()
    contest = enter(tmp_path, maker)
    assert not contest.is_building(60.0)
    maker.made[0].is_busy = True
    assert contest.is_building(60.0)
    assert not contest.is_building(0.0)
