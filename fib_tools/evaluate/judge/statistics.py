"""What samples of a time say: the figure, how sure it is, and whether they were taken under one set of conditions.

The figure is the mean of the middle half: a quarter of the samples is left out on each side, so that hiccups do not count,
and, unlike the median, it is not bound to the steps of a coarse clock.
Plain Python: a hundred samples take well under a millisecond, and nothing heavy is imported.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fib_tools.errors import FormatError

__all__ = [
    "Drift",
    "Ratio",
    "Summary",
    "Uneven",
    "find_drift",
    "find_uneven",
    "is_tight",
    "ratio_interval",
    "summarise",
]

_LEAST_SAMPLES = 8
"""Below this the middle half holds too few samples to tell how much they vary."""
_FEW = 1.5
"""Over the count: with few samples the winsorised variance comes out small, and 92% would be held for 95%."""
_LEAST_DRIFT_SAMPLES = 16
"""Two halves of eight: the smallest that can differ with the significance asked for."""
_DRIFT_Z = 3.29
"""Standard errors of the rank test: once in a thousand by chance."""
_HONEST_SHARE = 0.02
"""Calls that a quiet machine disturbs (a refresh, an interrupt, another context)."""
_HONEST_EXCESS = 2.0
"""By how much of the figure such a call is longer: up to three times as long in all."""
_LEAST_EXCESS = 0.2
"""A tail of this share of the figure is common on a CPU, where honest times are skewed."""
_CLOCK_STEP_MS = 3.2e-5
"""Of the GPU's global timer on Hopper, for samples that do not differ at all."""
_SAME_MS = 1e-7
"""A tenth of a nanosecond: closer values are one value written by floating point."""
_Z = 1.959963984540054
"""The normal distribution's 97.5% point."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The figure of a series, with its interval."""

    milliseconds: float
    """The mean of the middle half."""
    low: float
    """The 95% interval of the figure; the extremes of fewer than 8 samples."""
    high: float
    spread: float
    """The distance of the quartiles over the median."""
    count: int

    @property
    def half_width(self) -> float:
        """Half the interval as a share of the figure; 0 when the figure is 0."""
        return (self.high - self.low) / 2 / self.milliseconds if self.milliseconds else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """The second half of the samples differs from the first."""

    before: float
    """The first half's figure, in milliseconds."""
    after: float

    @property
    def ratio(self) -> float:
        """After over before: above 1 when it became slower; infinite when the first half took no time."""
        return self.after / self.before if self.before else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Uneven:
    """The figure leaves out more time than disturbances explain."""

    excess: float
    """The mean of all samples over the figure, less 1."""
    allowed: float
    """The excess that disturbances explain."""
    calls: tuple[int, ...]
    """Which samples are longer than a disturbance makes them, by place.

    One alone may be a hiccup of the machine: measure again before anyone is blamed.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """How many times as long one series takes as another."""

    ratio: float
    low: float
    """The 95% interval of the ratio."""
    high: float

    @property
    def is_difference(self) -> bool:
        """Tell whether the interval leaves out 1."""
        return not self.low <= 1.0 <= self.high


def summarise(samples: Sequence[float]) -> Summary:
    """Sum up milliseconds in the order in which they were taken.

    From 8 samples on the interval is Tukey and McLaughlin's for a trimmed mean: Student's t with the winsorised variance;
    where neighbours are alike, it is wider by as much as they tell less than independent samples.

    Raises:
        FormatError: there is no sample, or one of them is no time.
    """
    return _summarise(_checked(samples))


def is_tight(summary: Summary, target: float) -> bool:
    """Tell whether half the interval is at most this share of the figure; fewer than 8 samples never are."""
    return summary.count >= _LEAST_SAMPLES and summary.half_width <= target


def find_drift(samples: Sequence[float], *, least: float = 0.02) -> Drift | None:
    """Find that the second half is faster or slower by at least this share, and that chance does not explain it.

    The test is Mann and Whitney's on ranks, at one in a thousand; under 16 samples nothing can be told.

    Raises:
        FormatError: there is no sample, or one of them is no time.
    """
    times = _checked(samples)
    if len(times) < _LEAST_DRIFT_SAMPLES:
        return None
    middle = len(times) // 2
    first, second = times[:middle], times[-middle:]
    before, after = _trimmed_mean(sorted(first)), _trimmed_mean(sorted(second))
    if abs(after - before) <= max(least * min(before, after), _CLOCK_STEP_MS):
        return None
    return Drift(before=before, after=after) if abs(_rank_z(first, second)) > _DRIFT_Z else None


def find_uneven(samples: Sequence[float]) -> Uneven | None:
    """Find that a few long calls carry time that the figure leaves out: some calls may do the work of others.

    One call of fifty up to three times as long is taken for a disturbed one, as are as many more as chance allows.
    A clock that falls near the end looks the same, so ask `find_drift` first.

    Raises:
        FormatError: there is no sample, or one of them is no time.
    """
    times = _checked(samples)
    figure = _trimmed_mean(sorted(times))
    excess = sum(times) / len(times) / figure - 1 if figure else (math.inf if any(times) else 0.0)
    allowed = max(_LEAST_EXCESS, _HONEST_EXCESS * _likely_count(len(times), _HONEST_SHARE) / len(times))
    if excess <= allowed:
        return None
    longest = (1 + _HONEST_EXCESS) * figure
    calls = tuple(place for place, time in enumerate(times) if time > longest)
    return Uneven(excess=excess, allowed=allowed, calls=calls)


def ratio_interval(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Divide the first series' figure by the second's, with a 95% interval that knows both and the clock's step.

    Raises:
        FormatError: a series has fewer than 8 samples, or one of them is no time above zero.
    """
    one, other = _checked(first), _checked(second)
    if min(len(one), len(other)) < _LEAST_SAMPLES or not (min(one) > 0 and min(other) > 0):
        raise FormatError("a ratio needs 8 samples above zero on both sides", todo="measure again, or for longer")
    a, b = _summarise(one), _summarise(other)
    ratio = a.milliseconds / b.milliseconds
    shares = (
        a.half_width,
        b.half_width,
        _find_step(one) / a.milliseconds,
        _find_step(other) / b.milliseconds,
    )
    width = math.sqrt(sum(share * share for share in shares))
    return Ratio(ratio=ratio, low=ratio * math.exp(-width), high=ratio * math.exp(width))


def _checked(samples: Sequence[float]) -> list[float]:
    times = [float(sample) for sample in samples]
    if not times:
        raise FormatError("a series without samples has no figure", todo="measure at least once")
    wrong = next((time for time in times if not (math.isfinite(time) and time >= 0)), None)
    if wrong is not None:
        raise FormatError(f"{wrong!r} is no time in milliseconds", todo="look at the timer's raw records")
    return times


def _summarise(times: list[float]) -> Summary:
    ordered = sorted(times)
    figure = _trimmed_mean(ordered)
    median = _quantile(ordered, 0.5)
    spread = (_quantile(ordered, 0.75) - _quantile(ordered, 0.25)) / median if median else 0.0
    if len(times) < _LEAST_SAMPLES:
        low, high = ordered[0], ordered[-1]
    else:
        width = _half_interval(times, ordered)
        low, high = max(0.0, figure - width), figure + width
    return Summary(milliseconds=figure, low=low, high=high, spread=spread, count=len(times))


def _trimmed_mean(ordered: list[float]) -> float:
    """Leave a quarter out on each side; a sum of equal values is kept equal to them."""
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return kept[0] if kept[0] == kept[-1] else math.fsum(kept) / len(kept)


def _quantile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _half_interval(times: list[float], ordered: list[float]) -> float:
    """Give half the 95% interval of the trimmed mean, in milliseconds."""
    count, cut = len(ordered), len(ordered) // 4
    kept = count - 2 * cut
    floor, ceiling = ordered[cut], ordered[count - cut - 1]
    if floor == ceiling:
        return 0.0
    winsorised = [min(max(time, floor), ceiling) for time in times]
    mean = math.fsum(winsorised) / count
    offsets = [value - mean for value in winsorised]
    squares = math.fsum(offset * offset for offset in offsets)
    error = math.sqrt(squares / (count - 1)) * math.sqrt(count) / kept
    return _student(kept - 1) * error * (1 + _FEW / count) * math.sqrt(_inflation(offsets, squares))


def _inflation(offsets: list[float], squares: float) -> float:
    """Say how much more the mean varies than that of independent samples, from the likeness of neighbours."""
    count = len(offsets)
    likeness = math.fsum(a * b for a, b in pairwise(offsets)) / squares
    if likeness <= 2 / math.sqrt(count):
        return 1.0
    likeness = min(likeness, 0.9)
    return (1 + likeness) / (1 - likeness)


def _student(freedom: int) -> float:
    """Give Student's 97.5% point by its expansion around the normal one; within 0.1% from 3 degrees of freedom on."""
    z, v = _Z, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _rank_z(first: list[float], second: list[float]) -> float:
    """Count how often the second half is above the first, in standard errors from evens; ties count half."""
    ordered, everything = sorted(first), sorted([*first, *second])
    wins = sum(bisect_left(ordered, time) + bisect_right(ordered, time) for time in second) / 2
    m, n, total = len(first), len(second), len(everything)
    ties = 0
    place = 0
    while place < total:
        end = bisect_right(everything, everything[place])
        ties += (end - place) ** 3 - (end - place)
        place = end
    variance = m * n / 12 * (total + 1 - ties / (total * (total - 1)))
    return (wins - m * n / 2) / math.sqrt(variance) if variance > 0 else 0.0


def _likely_count(count: int, share: float) -> int:
    """Give the most events, of this share of the calls, that chance brings in all but one of 10,000 series."""
    expected = count * share
    term = total = math.exp(-expected)
    events = 0
    while total < 0.9999 and events < count:
        events += 1
        term *= expected / events
        total += term
    return events


def _find_step(times: list[float]) -> float:
    """Find the clock's step, which is how far a time can be off; 0 where few samples share a value, so it is fine."""
    distinct = sorted(set(times))
    if 2 * len(distinct) > len(times):
        return 0.0
    gaps = [gap for a, b in pairwise(distinct) if (gap := b - a) > _SAME_MS]
    return min(gaps, default=_CLOCK_STEP_MS)
