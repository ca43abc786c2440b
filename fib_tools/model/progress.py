"""How far an onboarding has come beyond its Definitions, and how long each part took: what a manifest says of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Annotated

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty

__all__ = ["Asked", "PhaseTime", "Step", "StepRecord", "add_time", "sum_times"]


class Step(str, Enum):
    """The steps of phase 3, in their order."""

    TEST = "test"
    """The reference is compared with the real kernel."""
    BASELINE = "baseline"
    """The real kernel becomes a Solution."""
    COLLECT = "collect"
    """An engine serves the model, and its calls become Workloads."""
    SIZES = "sizes"
    """A Definition without Workloads gets some of made-up sizes."""
    CALIBRATE = "calibrate"
    """Tolerances are chosen from the errors of real kernels."""
    BENCH = "bench"
    """The baselines are measured: Traces."""


class StepRecord(Model):
    """What came of one step for one kernel."""

    status: NonEmpty
    """As the command of that step calls it: passed, written, calibrated."""
    detail: str = ""
    """Figures, or the reason."""
    basis: NonEmpty
    """A hash of what it follows from: of another Definition it says nothing."""
    machine: str = ""
    """The GPU's model, or the CPU's."""


class PhaseTime(Model):
    """How long a phase, or a step of it, took in all runs that had something to do."""

    phase: Annotated[int, Field(ge=0, le=4)]
    step: Step | None = None
    seconds: Annotated[float, Field(ge=0)]
    machine: str = ""
    """Where the last of them was."""


class Asked(Model):
    """What the last onboarding or definition was asked for, so that a later phase elsewhere goes on with the same."""

    tp_list: tuple[int, ...] | None = None
    ep_list: tuple[int, ...] | None = None
    page_sizes: tuple[int, ...] | None = None
    hardware: str | None = None
    op_types: tuple[str, ...] | None = None


def add_time(times: Sequence[PhaseTime], spent: PhaseTime) -> tuple[PhaseTime, ...]:
    """Add what a run took to what earlier runs took, in the order of phases and steps."""
    order = [None, *Step]
    kept = {(time.phase, time.step): time for time in times}
    before = kept.get((spent.phase, spent.step))
    if before is not None:
        spent = spent.model_copy(update={"seconds": round(before.seconds + spent.seconds, 3)})
    kept[spent.phase, spent.step] = spent
    return tuple(sorted(kept.values(), key=lambda time: (time.phase, order.index(time.step))))


def sum_times(times: Sequence[PhaseTime]) -> dict[int, float]:
    """Sum up the seconds of each phase."""
    phases = sorted({time.phase for time in times})
    return {phase: round(sum(time.seconds for time in times if time.phase == phase), 3) for phase in phases}
