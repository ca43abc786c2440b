"""When a Solution has been timed enough, and what its times give away."""

from __future__ import annotations

import math

from fib_tools.evaluate.judge.refusal import Refusal
from fib_tools.evaluate.judge.statistics import find_drift, find_uneven, is_tight, summarise
from fib_tools.evaluate.judge.trial import Trial
from fib_tools.model.evidence import L2, Launch, Series, Timer
from fib_tools.model.trace import EvaluationStatus

__all__ = ["as_series", "count_missing", "find_fault", "find_together", "has_enough"]

_TIGHT = 0.005
"""Half the 95% interval as a share of the figure."""
_RESERVE = 1.2
"""An interval of more samples may come out wider than the square root of their number says."""
_LONG_SECONDS = 1.0
"""Of timed calls; a Solution that has had so much is not asked for more rounds."""
_CHANCE_MS = 0.0005
"""By so much two figures of a tiny kernel differ by chance, when one of them comes from a dozen calls."""
_TOGETHER = 0.8
"""A call's share of a graph's time may be this part of the time that its kernels work when they are launched alone."""
_REMEMBERING = 0.85
"""Calls on known contents may take this share of the time of those on new ones."""


def has_enough(trial: Trial, *, is_cpu: bool) -> bool:
    """Tell whether the figure is sure; unsteady times are asked for again, but on a CPU, which is never steady."""
    if is_cpu or sum(trial.cold) > _LONG_SECONDS * 1e3:
        return True
    figures = trial.again or trial.fresh
    return is_tight(summarise(figures), _TIGHT) and not find_drift(figures)


def count_missing(trial: Trial) -> int:
    """Say how many more samples would make the figure sure, by how much those that there are vary."""
    summary = summarise(trial.again or trial.fresh)
    wider = summary.half_width / _TIGHT
    return math.ceil(summary.count * (_RESERVE * wider**2 - 1)) if wider > 1 else 0


def as_series(samples: list[float], timer: Timer, launch: Launch) -> Series:
    """Sum up samples in milliseconds, of calls with a cold L2."""
    summary = summarise(samples)
    return Series(
        timer=timer,
        launch=launch,
        l2=L2.COLD,
        milliseconds=summary.milliseconds,
        low=summary.low,
        high=summary.high,
        samples=samples,
    )


def find_fault(trial: Trial, *, is_cpu: bool) -> Refusal | None:
    """Find what makes the times of a Solution unbelievable by themselves; other processes disturb those on a CPU."""
    if is_cpu:
        return None
    calls = trial.eager or trial.fresh
    uneven = find_uneven(calls)
    if uneven is not None and len(uneven.calls) > 1:
        detail = (
            f"calls {', '.join(map(str, uneven.calls[:6]))} of {len(calls)} took more than three times the figure; the mean is"
            f" {uneven.excess:.0%} above it: some calls do the work of others"
        )
        return Refusal(status=EvaluationStatus.RUNTIME_ERROR, detail=detail, rule="uneven")
    together = find_together(trial)
    if together is not None:
        return Refusal(status=EvaluationStatus.RUNTIME_ERROR, detail=together, rule="uneven")
    remembering = _find_remembering(trial)
    if remembering is not None:
        return Refusal(status=EvaluationStatus.RUNTIME_ERROR, detail=remembering, rule="memory")
    drift = find_drift(trial.again or trial.fresh, least=0.05)
    if drift is not None:
        detail = (
            f"the measurement is refused, not the Solution: its times went from {drift.before:.6g} to {drift.after:.6g} ms;"
            " run it again on a machine with steady clocks"
        )
        return Refusal(status=EvaluationStatus.RUNTIME_ERROR, detail=detail, rule="drift")
    return None


def find_together(trial: Trial) -> str | None:
    """Find that calls in a graph take less than the kernels of a call alone: one works for several, or behind a flush."""
    if not trial.is_captured or not trial.busy:
        return None
    alone, figure = summarise(trial.busy).milliseconds, summarise(trial.cold).milliseconds
    if figure >= _TOGETHER * alone - _CHANCE_MS:
        return None
    return f"a call takes {figure:.6g} ms among others in a graph, and its kernels work {alone:.6g} ms when it is alone"


def _find_remembering(trial: Trial) -> str | None:
    """Find that calls are faster on contents that were seen before."""
    if not trial.fresh or not trial.again:
        return None
    new, known = summarise(trial.fresh).milliseconds, summarise(trial.again).milliseconds
    if known >= _REMEMBERING * new - _CHANCE_MS:
        return None
    return f"a call takes {new:.6g} ms on new contents and {known:.6g} ms on contents that it has seen before"
