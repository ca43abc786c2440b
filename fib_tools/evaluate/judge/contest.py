"""The runners of one Definition: its reference, and the Solutions that are measured side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fib_tools.errors import FormatError
from fib_tools.evaluate.engines.items import Limits, Options, Task, hash_solution
from fib_tools.evaluate.judge.arena import Arena
from fib_tools.evaluate.judge.refusal import Refusal, RefusedError
from fib_tools.evaluate.judge.runner import Runner
from fib_tools.evaluate.judge.scene import describe_first_call
from fib_tools.evaluate.rules.source_rules import check_sources
from fib_tools.host.sandbox import Sandbox
from fib_tools.model.solution import BASELINE, Solution
from fib_tools.model.trace import EvaluationStatus

__all__ = ["Contest", "Entrant", "RunnerMaker", "refuse_sources"]

_LIFETIME_SECONDS = 24 * 3600.0
_MOST_TIMEOUTS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerMaker:
    """What all runners of a worker have in common."""

    sandbox: Sandbox
    device: str
    dataset: str
    options: Options

    def make(self, task: Task, solution: Solution | None) -> Runner:
        """Fork a runner and let it build."""
        runner = Runner(
            self.sandbox,
            task.definition,
            solution,
            device=self.device,
            dataset=self.dataset,
            lifetime=_LIFETIME_SECONDS,
            first_call=describe_first_call(task.workload),
            is_trusted=solution is not None and solution.author == BASELINE and solution.hash in task.trusted,
        )
        runner.begin_build(self.options.timer.value)
        return runner


@dataclass(kw_only=True)
class Entrant:
    """One Solution, with its runner as long as it lives."""

    solution: Solution
    runner: Runner | None = None
    refusal: Refusal | None = None
    """What holds for every Workload: a broken source rule, a failed build, first calls that never end."""
    timeouts: int = 0
    """Of first calls, one after another."""
    build_seconds: float = 0.0
    libs: dict[str, str] = field(default_factory=dict)
    protections: dict[str, bool] = field(default_factory=dict)

    def note_first_call(self, refusal: Refusal) -> None:
        """Give up on a Solution that hung at the first call twice: a long compilation would have ended by then."""
        self.timeouts = self.timeouts + 1 if refusal.rule == "timeout" else 0
        if self.timeouts >= _MOST_TIMEOUTS:
            detail = f"{refusal.detail}, {self.timeouts} times: it was not tried again"
            self.refusal = replace(refusal, detail=detail)


class Contest:
    """Starts the runners at once, so that they build while others are measured."""

    def __init__(self, maker: RunnerMaker, task: Task) -> None:
        self._maker = maker
        self._task = task
        self.reference = maker.make(task, None)
        self.entrants = {hash_solution(solution): self._enter(solution) for solution in task.solutions}
        self._begun = time.monotonic()

    @property
    def limits(self) -> Limits:
        """Time limits."""
        return self._maker.options.limits

    @property
    def dataset(self) -> Path:
        """Where blobs lie."""
        return Path(self._maker.dataset)

    def _enter(self, solution: Solution) -> Entrant:
        """Read a Solution's sources; only one that breaks no rule gets a runner."""
        refusal = refuse_sources(solution)
        if refusal is not None:
            return Entrant(solution=solution, refusal=refusal)
        return Entrant(solution=solution, runner=self._maker.make(self._task, solution))

    @property
    def size(self) -> int:
        """How many runners there are, or may be."""
        return 1 + len(self.entrants)

    def admit(self, solution: Solution) -> Entrant:
        """Give the entrant of a Solution, entered now if it was not before."""
        key = hash_solution(solution)
        if key not in self.entrants:
            self.entrants[key] = self._enter(solution)
        return self.entrants[key]

    def is_building(self, seconds: float) -> bool:
        """Tell whether runners still build or make their first calls, and have not done so for this long."""
        return time.monotonic() - self._begun < seconds and any(runner.is_busy for runner in self._runners())

    def wait_building(self, seconds: float) -> None:
        """Wait so long for one of those that build."""
        for runner in self._runners():
            if runner.is_busy:
                return runner.wait_busy(seconds)
        return None

    def advance(self) -> None:
        """Have every runner go on that has built, end the dead, and start those anew that crashed; wait for none.

        One that hung at its first call is started at its turn, since it may keep the device from others, and so is one
        whose build failed, since that may go on for ever.
        """
        for runner in self._runners():
            runner.advance()
        for entrant in self.entrants.values():
            if entrant.runner is None or not entrant.runner.is_dead:
                continue
            if entrant.refusal or entrant.timeouts or entrant.runner.failed_to_build:
                _end(entrant)
            else:
                self._start_anew(entrant)

    def _start_anew(self, entrant: Entrant) -> Runner:
        """Start a Solution's runner again: the next Workload may do better."""
        _end(entrant)
        entrant.runner = self._maker.make(self._task, entrant.solution)
        return entrant.runner

    def ready(self, entrant: Entrant, seconds: float, *, first_call: float) -> Runner:
        """Give an entrant's runner, built; a crashed one is started anew, since the next Workload may do better.

        `seconds` limit the build, `first_call` the first call after it.

        Raises:
            RefusedError: it may not run, or cannot be built.
        """
        if entrant.refusal is not None:
            raise _again(entrant.refusal)
        runner = entrant.runner
        if runner is None or runner.is_dead:
            runner = self._start_anew(entrant)
        try:
            runner.finish_build(seconds)
        except RefusedError as error:
            entrant.refusal = error.refusal
            _end(entrant)
            raise
        entrant.protections = runner.protections
        entrant.build_seconds, entrant.libs = runner.build_seconds, runner.libs
        try:
            runner.finish_first_call(first_call)
        except RefusedError as error:
            entrant.note_first_call(error.refusal)
            raise
        entrant.timeouts = 0
        return runner

    def stop_all(self) -> None:
        """Say that it is nobody's turn."""
        for runner in self._runners():
            runner.stop()

    def release(self, arena: Arena) -> None:
        """Have nobody hold an arena that is about to be given back."""
        for runner in self._runners():
            with suppress(RefusedError):  # who cannot even let go is found dead at its next turn
                runner.forget(arena)

    def close(self, *, waits: bool = False) -> None:
        """End all; with `waits`, return when they have given their memory back."""
        runners = list(self._runners())
        for runner in runners:
            runner.close()
        for runner in runners if waits else ():
            runner.wait()

    def _runners(self) -> Iterator[Runner]:
        yield self.reference
        yield from (entrant.runner for entrant in self.entrants.values() if entrant.runner is not None)


def refuse_sources(solution: Solution) -> Refusal | None:
    """Say what follows from the sources alone; nothing is run."""
    try:
        violations = check_sources(solution)
    except FormatError as error:
        return Refusal(status=EvaluationStatus.COMPILE_ERROR, detail=str(error))
    if not violations:
        return None
    detail = "; ".join(violation.detail for violation in violations[:4])
    return Refusal(status=EvaluationStatus.RUNTIME_ERROR, detail=detail, rule=violations[0].rule.name)


def _end(entrant: Entrant) -> None:
    if entrant.runner is not None:
        entrant.runner.close()
        entrant.runner = None


def _again(refusal: Refusal) -> RefusedError:
    return RefusedError(refusal.status, refusal.detail, rule=refusal.rule)
