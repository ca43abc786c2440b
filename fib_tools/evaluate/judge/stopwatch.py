"""The judge's own clock: a runner makes many calls, and only the time between question and answer is believed.

The time of `4n` calls less that of `n` is that of `3n` calls: what asking and answering cost cancels out.
"""

from __future__ import annotations

import math
import statistics

from fib_tools.evaluate.judge.refusal import RefusedError
from fib_tools.evaluate.judge.runner import Runner
from fib_tools.evaluate.judge.scene import Staging
from fib_tools.evaluate.judge.trial import Trial
from fib_tools.model.evidence import L2, Launch, Series, Timer
from fib_tools.model.trace import EvaluationStatus

__all__ = ["time_loops"]

_TARGET_SECONDS = 0.4e-3
"""Of the shorter of two loops; four times as long where a doubt is to be settled."""
_LONG = 4
_MOST_UNITS = 400
_REPEATS = 3
_SECONDS = 120.0
_SEED = 1
_SUSPICION = 2.0
_SUSPICION_ON_CPU = 6.0
"""A loop's call may take so many times as long as was claimed for one call alone; other processes share a CPU."""
_SLACK_MS = 0.004
"""Kernels of a graph start a microsecond apart, and clocks differ."""
_HOST_SLACK = 1.5


def time_loops(runner: Runner, staging: Staging, trial: Trial, *, sets: int, has_graphs: bool) -> list[Series]:
    """Time loops of graph replays, where the Solution can be captured, and of eager calls.

    Raises:
        RefusedError: calls in a loop take far longer than was claimed for one (`stopwatch`).
    """
    claimed = statistics.median(trial.cold)
    host = statistics.median(trial.host) / 1e3
    factor = _SUSPICION if has_graphs else _SUSPICION_ON_CPU
    loops = []
    graph = (
        _Loop(runner, staging, expected_ms=claimed, sets=sets, graph=True) if has_graphs and trial.is_captured else None
    )
    if graph is not None:
        loops.append(_weigh(graph, factor * claimed, "replays of a CUDA graph"))
    eager = _Loop(runner, staging, expected_ms=max(claimed, host), sets=sets, graph=False)
    limit = claimed if graph is None and not has_graphs else max(claimed, _HOST_SLACK * host)
    loops.append(_weigh(eager, math.inf if graph else factor * limit, "calls in a loop"))
    return loops


class _Loop:
    """One kind of loop."""

    def __init__(self, runner: Runner, staging: Staging, *, expected_ms: float, sets: int, graph: bool) -> None:
        self._runner = runner
        self._message: dict[str, object] = {
            "do": "loop",
            "name": staging.name,
            "seed": _SEED,
            "graph": graph,
            "sets": sets,
        }
        self._expected_ms = expected_ms
        self.launch = Launch.GRAPH if graph else Launch.EAGER
        self._calls = sets if graph else 1
        """Of one unit of `count`."""
        runner.ask({**self._message, "count": 1}, _SECONDS)

    def time(self, factor: int = 1) -> float:
        """Give the milliseconds of one call."""
        unit = max(self._expected_ms * self._calls, 1e-4)
        units = max(1, min(_MOST_UNITS * factor, round(factor * _TARGET_SECONDS * 1e3 / unit)))
        short = self._runner.time({**self._message, "count": units}, _SECONDS)[1]
        long = self._runner.time({**self._message, "count": 4 * units}, _SECONDS)[1]
        return max(0.0, (long - short) * 1e3 / (3 * units * self._calls))


def _weigh(loop: _Loop, most: float, what: str) -> Series:
    """Time a loop, and once more, longer, if a call takes more milliseconds than the claim allows."""
    samples = [loop.time()]
    if samples[0] > most + _SLACK_MS:
        samples = [loop.time(_LONG) for _ in range(_REPEATS)]
        if min(samples) > most + _SLACK_MS:
            detail = f"what was claimed allows {most:.6g} ms for a call; {what} took {min(samples):.6g} ms each by the judge's clock"
            raise RefusedError(EvaluationStatus.RUNTIME_ERROR, detail, rule="stopwatch")
    figure = statistics.median(samples)
    return Series(
        timer=Timer.STOPWATCH,
        launch=loop.launch,
        l2=L2.WARM,
        milliseconds=figure,
        low=min(samples),
        high=max(samples),
        samples=samples,
    )
