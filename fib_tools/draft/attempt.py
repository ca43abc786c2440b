"""What a search tries, and what the evaluator said of it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum

from pydantic import Field

from fib_tools.evaluate.inspection.exactness import Exactness
from fib_tools.evaluate.inspection.ncu import Profile
from fib_tools.llm.prices import Usage
from fib_tools.model.base import Model, NonNegative
from fib_tools.model.evidence import L2, Evidence, Launch
from fib_tools.model.solution import Solution
from fib_tools.model.trace import EvaluationStatus
from fib_tools.model.weights import geometric_mean

__all__ = ["REPEATS", "Ask", "AskKind", "Attempt", "Draft", "ShapeResult", "are_apart", "find_best", "sum_up"]


REPEATS = "it does the same as attempt"
"""So begins the problem of a draft that is not judged again."""


class AskKind(str, Enum):
    """What a model is asked for."""

    FIRST = "first"
    """A Solution from nothing but the brief."""
    REPAIR = "repair"
    """The same Solution without what is wrong with it."""
    IMPROVE = "improve"
    """A faster one than a right one."""
    CROSS = "cross"
    """One that joins what two right ones do best."""


class Ask(Model):
    """One wish of a strategy."""

    kind: AskKind
    parents: tuple[int, ...] = ()
    """Numbers of the attempts to go on from."""
    island: int = 0


class Draft(Model):
    """What the model answered, before anything was run."""

    number: NonNegative
    ask: Ask
    author: str = ""
    """Who drafted it, if not the run's model."""
    technique: str = ""
    """In a few words, as the model calls it."""
    why: str = ""
    """What it expects of it, in a sentence."""
    answer: str = ""
    """All that it said, where there is no source in it."""
    source: str = ""
    problem: str = ""
    """Why there is nothing to run."""
    time_limit: float = 0.0
    """Seconds for its calls on one Workload, also where an interrupt leaves its verdict to another command; 0 for that one's."""
    tokens: Usage = Usage()


class ShapeResult(Model):
    """One Workload."""

    workload: str
    axes: dict[str, int]
    status: EvaluationStatus
    rule: str = ""
    detail: str = ""
    weight: float = Field(default=1.0, gt=0.0)
    """How much it counts beside the others."""
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    percent: float | None = None
    """Of what the device was measured to allow."""
    speedup: float | None = None
    """Over the baseline; over the reference where there is none."""
    against: str = ""
    """Which of the two; empty in runs of older versions."""
    warm_ms: float | None = None
    """With its data in the L2, where a graph's replay was timed so."""
    kernels: tuple[str, ...] = ()
    """Of one call, in order, their names shortened; the first few."""
    launches: int = 0
    """How many there are."""
    evidence: str = ""
    """Its key."""

    @property
    def half_width(self) -> float:
        """Half the 95% interval of its time, as a share of it."""
        return ((self.high or 0.0) - (self.low or 0.0)) / 2 / self.milliseconds if self.milliseconds else 0.0

    @property
    def verdict(self) -> str:
        """Its status, and the rule that was broken."""
        return f"{self.status.value} ({self.rule})" if self.rule else self.status.value


class Attempt(Model):
    """One draft, judged."""

    number: NonNegative
    ask: Ask
    technique: str
    why: str = ""
    digest: str
    """Of what the source does: drafts that differ in words alone have the same."""
    solution: Solution | None = None
    problem: str = ""
    """Why it was not evaluated: no code, or the same as an earlier attempt."""
    results: tuple[ShapeResult, ...] = ()
    untried: NonNegative = 0
    """Workloads of the Definition that it was not judged on."""
    time_limit: float = 0.0
    """Seconds that it had on each Workload; 0 in runs of older versions."""
    exactness: Exactness | None = None
    """How far its outputs are from float64, where they were compared at all."""
    profile: Profile | None = None
    """Of one that was the best when it was judged."""

    def narrow(self, workloads: Collection[str]) -> Attempt:
        """Take what was said on these Workloads alone; nothing unless it was judged on all of them."""
        kept = tuple(result for result in self.results if result.workload in workloads)
        return self.model_copy(update={"results": kept if len(kept) == len(workloads) else ()})

    @property
    def sizes(self) -> str:
        """Say in words on how many Workloads it was judged."""
        count = len(self.results)
        return f"{count} of {count + self.untried} sizes"

    @property
    def passed(self) -> bool:
        """Tell whether every Workload that it was judged on passed."""
        return bool(self.results) and all(result.status is EvaluationStatus.PASSED for result in self.results)

    @property
    def score(self) -> float:
        """The geometric mean of its speed-ups, weighted by how often their Workloads occur; 0 if it is not right."""
        known = [(result.weight, result.speedup) for result in self.results if result.speedup]
        return geometric_mean(known) if self.passed and known else 0.0

    @property
    def is_repeat(self) -> bool:
        """Tell whether an earlier attempt does the same."""
        return self.repeated is not None

    @property
    def repeated(self) -> int | None:
        """Its number."""
        number = self.problem.removeprefix(REPEATS).strip()
        return int(number) if self.problem.startswith(REPEATS) and number.isdecimal() else None

    @property
    def against(self) -> str:
        """Say what its speed is compared with."""
        found = dict.fromkeys(result.against for result in self.results if result.against)
        return " or ".join(f"the {each}" for each in found) or "what is to be beaten"

    @property
    def is_apart(self) -> bool:
        """Tell whether its score is not 1, by the intervals of its own times: of what it is compared with none is kept."""
        known = [(result.weight, result.half_width) for result in self.results if result.speedup]
        return bool(self.score) and abs(math.log(self.score)) > _find_width(known)

    @property
    def first_wrong(self) -> ShapeResult | None:
        """The first Workload that did not pass."""
        return next((result for result in self.results if result.status is not EvaluationStatus.PASSED), None)


_KERNELS, _NAME = 6, 48


def _find_warm(evidence: Evidence) -> float | None:
    warm = [each for each in evidence.series if each.l2 is L2.WARM and each.launch is Launch.GRAPH]
    return warm[0].milliseconds if warm else None


def _shorten(name: str) -> str:
    """Give the telling part of a kernel's name: of a mangled one the last of its words that says kernel, else the longest."""
    if not name.startswith("_Z"):
        return name[:_NAME]
    words = [
        name[match.end() : match.end() + int(match[0][start:])]
        for match in re.finditer(r"[0-9]+", name)
        for start in range(len(match[0]))  # a word may end in digits, which stand before the length of the next
    ]
    telling = [word for word in words if "kernel" in word.casefold() and word[:1].isalpha() and len(word) <= _NAME]
    return telling[-1] if telling else name[:_NAME]


def _find_width(shares: Sequence[tuple[float, float]]) -> float:
    """Give the half-width of a weighted geometric mean's logarithm, from weights and half-widths of what it is made of."""
    total = sum(weight for weight, _ in shares)
    return math.sqrt(sum((weight * width) ** 2 for weight, width in shares)) / total if total else 0.0


def are_apart(one: Attempt, other: Attempt) -> bool:
    """Tell whether the ratio of two right attempts' times on the same Workloads has a 95% interval without 1."""
    mean, width = _compare(one, other)
    return abs(mean) > width


def _is_faster(one: Attempt, other: Attempt) -> bool:
    """Tell by their own times: what each is compared with may have been timed anew between them."""
    mean, width = _compare(one, other)
    return mean > width


def _compare(one: Attempt, other: Attempt) -> tuple[float, float]:
    """Give the logarithm of how many times as fast as the other the one is, and half the width of its 95% interval."""
    theirs = {result.workload: result for result in other.results}
    pairs = [(mine, theirs[mine.workload]) for mine in one.results if mine.milliseconds and mine.workload in theirs]
    timed = [(mine, their, their.milliseconds) for mine, their in pairs if their.milliseconds]
    total = sum(mine.weight for mine, _, _ in timed) or 1.0
    mean = sum(mine.weight * math.log(time / (mine.milliseconds or time)) for mine, _, time in timed) / total
    width = _find_width([(mine.weight, math.hypot(mine.half_width, their.half_width)) for mine, their, _ in timed])
    return mean, width


def find_best(attempts: Iterable[Attempt], workloads: Collection[str] | None = None) -> Attempt | None:
    """Find the fastest right attempt, by these Workloads alone if any are named.

    Only one that can be told apart from the best before it takes its place. Without names all are taken to be judged on
    the same Workloads, as within a search.
    """
    compared = attempts if workloads is None else (attempt.narrow(workloads) for attempt in attempts)
    best: Attempt | None = None
    for attempt in sorted((each for each in compared if each.passed), key=lambda each: each.number):
        if best is None or _is_faster(attempt, best):
            best = attempt
    return best


def sum_up(
    evidence: Sequence[Evidence], baseline_ms: Mapping[str, float], weights: Mapping[str, float]
) -> tuple[ShapeResult, ...]:
    """Sum up what the evaluator found; `baseline_ms` and `weights` by workload uuid.

    A Workload that came to the dataset after the run began has no weight there: it counts as much as the mean of the others.
    """
    mean = sum(weights.values()) / len(weights) if weights else 1.0
    return tuple(
        _sum_up_one(each, baseline_ms.get(each.subject.workload), weights.get(each.subject.workload, mean))
        for each in evidence
    )


def _sum_up_one(evidence: Evidence, baseline: float | None, weight: float) -> ShapeResult:
    figure = evidence.series[0] if evidence.series and evidence.status is EvaluationStatus.PASSED else None
    against = baseline or evidence.reference_ms
    return ShapeResult(
        workload=evidence.subject.workload,
        axes=evidence.axes,
        status=evidence.status,
        rule=evidence.rule or "",
        detail=evidence.detail,
        weight=weight,
        milliseconds=figure.milliseconds if figure else None,
        low=figure.low if figure else None,
        high=figure.high if figure else None,
        percent=evidence.roofline.percent if figure and evidence.roofline else None,
        speedup=against / figure.milliseconds if figure and figure.milliseconds and against else None,
        against="baseline" if baseline else "reference",
        warm_ms=_find_warm(evidence) if figure else None,
        kernels=tuple(_shorten(name) for name in evidence.kernels[:_KERNELS]),
        launches=len(evidence.kernels),
        evidence=evidence.key,
    )
