"""What a report says: measurements, and what follows from them for definitions, authors and two sides of a comparison.

Times are milliseconds, speed-ups are factors, shares and rates lie between 0 and 1, percentages between 0 and 100.
"""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.trace import EvaluationStatus

__all__ = [
    "MARKS",
    "ComparedPair",
    "Comparison",
    "DefinitionReport",
    "DeviceReport",
    "FastCurve",
    "Measurement",
    "Rejection",
    "Report",
    "SolutionReport",
    "Standing",
    "Verdict",
    "WorkloadReport",
]


MARKS = (0.5, 0.8, 1.0, 1.5, 2.0, 4.0)
"""The speed-ups at which fast_p is told in words."""


class Measurement(Model):
    """One Solution on one Workload, as its newest Trace tells it."""

    definition: NonEmpty
    op_type: str
    author: str
    """Empty where neither path nor Solution tells it."""
    solution: str
    workload: NonEmpty
    """Its uuid."""
    device: NonEmpty
    """The GPU's model, such as NVIDIA H200, or the CPU's name."""
    measured_by: NonEmpty
    """`fib-tools`, or `another tool`: their times are never compared."""
    timer: str = ""
    """What it was timed with, where that is known."""
    status: EvaluationStatus
    rule: str | None = None
    """The integrity rule that rejected it."""
    detail: str = ""
    """What went wrong."""
    milliseconds: float | None = None
    low: float | None = None
    """The 95% interval of the time."""
    high: float | None = None
    speedup: float | None = None
    """Over the fastest baseline on the same workload, device and timer."""
    reference_speedup: float | None = None
    """Over the reference."""
    percent: float | None = None
    """Of the measured limit of the device."""
    evidence: str | None = None
    """The address of what was seen while it ran."""
    timestamp: str = ""

    @property
    def passed(self) -> bool:
        """Correct, and by honest means."""
        return self.status is EvaluationStatus.PASSED


class WorkloadReport(Model):
    """A workload of a definition, and the time to beat."""

    uuid: NonEmpty
    label: str
    """The axes in which the definition's workloads differ, such as `batch_size 64`."""
    axes: dict[str, int]
    baseline_ms: float | None = None


class SolutionReport(Model):
    """One Solution over the workloads of its definition."""

    author: str
    solution: str
    passed: int
    attempted: int
    speedup: float | None = None
    """The geometric mean over workloads that passed and have a baseline."""
    compared: int = 0
    """Those workloads."""
    reference_speedup: float | None = None
    percent: float | None = None
    """The geometric mean of the percentages of the measured limit."""
    fast: dict[str, float] = Field(default_factory=dict)
    """By p: the share of the workloads with a baseline on which it passed and is at least p times as fast."""
    rules: tuple[str, ...] = ()
    """The integrity rules that it broke."""


class DefinitionReport(Model):
    """One definition on one device."""

    definition: NonEmpty
    op_type: str
    device: NonEmpty
    measured_by: NonEmpty
    workloads: tuple[WorkloadReport, ...]
    """In order of size."""
    solutions: tuple[SolutionReport, ...]
    """The best first."""

    @property
    def has_baseline(self) -> bool:
        """Tell whether any speed-up is known; if not, there are those over the reference."""
        return any(solution.speedup is not None for solution in self.solutions)


class FastCurve(Model):
    """fast_p: the share of workloads on which someone passed and is at least p times as fast as the baseline."""

    name: str
    """The author, or `best of all`, which leaves out the baseline."""
    workloads: int
    """With a baseline; those that were not attempted count as not passed."""
    speedups: tuple[float, ...]
    """Of the workloads that passed, in rising order: the whole curve."""
    fast: dict[str, float]
    """The share at each of the marks."""


class Standing(Model):
    """An author's place on the leaderboard of a device."""

    author: str
    definitions: int
    solutions: int
    attempted: int
    """Workloads, each with the author's best Solution."""
    passed: int
    correct: float
    """The share of all evaluations of this author's Solutions that passed."""
    rejected: int
    """Evaluations that an integrity rule rejected."""
    speedup: float | None = None
    """The geometric mean, with the best Solution for each workload."""
    reference_speedup: float | None = None
    """The same over the reference."""
    fast_1: float | None = None
    """The share of all workloads with a baseline on which the author is at least as fast."""
    percent: float | None = None


class Rejection(Model):
    """A Solution that an integrity rule rejected."""

    rule: NonEmpty
    author: str
    solution: str
    definition: NonEmpty
    device: NonEmpty
    workloads: int
    detail: str
    """What was seen, on one of them."""


class DeviceReport(Model):
    """Everything measured on one model of GPU, or CPU, by one kind of evaluator."""

    device: NonEmpty
    measured_by: NonEmpty
    is_cpu: bool = False
    evaluations: int
    passed: int
    rejected: int
    timers: tuple[str, ...] = ()
    newest: str = ""
    """When the newest of them was made."""
    leaderboard: tuple[Standing, ...]
    curves: tuple[FastCurve, ...]
    rejections: tuple[Rejection, ...] = ()

    @property
    def has_baseline(self) -> bool:
        """Tell whether any speed-up is known; if not, there are those over the reference."""
        return any(standing.speedup is not None for standing in self.leaderboard)


class Verdict(str, Enum):
    """What a comparison says of one workload."""

    FIRST = "first is faster"
    SECOND = "second is faster"
    SAME = "no difference"
    NO_SAMPLES = "no samples to judge by"
    ONLY_FIRST = "only the first passed"
    ONLY_SECOND = "only the second passed"
    NEITHER = "neither passed"
    TIMERS = "timed by different means"


class ComparedPair(Model):
    """One workload on both sides."""

    definition: NonEmpty
    workload: NonEmpty
    label: str
    device: NonEmpty
    first: str
    """The Solution on the first side, as author/solution."""
    second: str
    first_ms: float | None = None
    second_ms: float | None = None
    ratio: float | None = None
    """First over second: above 1 where the second is faster."""
    low: float | None = None
    """The 95% interval of the ratio, where samples exist."""
    high: float | None = None
    verdict: Verdict


class Comparison(Model):
    """Two Solutions, or two datasets, workload by workload."""

    first: NonEmpty
    second: NonEmpty
    ratios: dict[str, float]
    """By device: the geometric mean of first over second where both passed and were timed alike."""
    pairs: tuple[ComparedPair, ...]

    def count(self, verdict: Verdict) -> int:
        """Count the workloads with a verdict."""
        return sum(pair.verdict is verdict for pair in self.pairs)


class Report(Model):
    """All of it."""

    devices: tuple[DeviceReport, ...]
    definitions: tuple[DefinitionReport, ...]
    """By device, then by name."""
    measurements: tuple[Measurement, ...]
