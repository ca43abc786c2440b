from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import pytest

from fib_tools.errors import FormatError
from fib_tools.evaluate.judge.statistics import (
    Drift,
    Ratio,
    find_drift,
    find_uneven,
    is_tight,
    ratio_interval,
    summarise,
)

Draw = Callable[[random.Random], float]

NORMAL: Draw = lambda lots: lots.gauss(1.0, 0.02)  # noqa: E731
SKEWED: Draw = lambda lots: math.exp(lots.gauss(0.0, 0.3))  # noqa: E731
HICCUPS: Draw = lambda lots: lots.gauss(1.0, 0.02) * (3.0 if lots.random() < 0.02 else 1.0)  # noqa: E731


def series(draw: Draw, count: int, seed: int = 0) -> list[float]:
    lots = random.Random(seed)  # noqa: S311
    return [draw(lots) for _ in range(count)]


def test_the_figure_is_the_mean_of_the_middle_half() -> None:
    summary = summarise([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 100.0])
    assert summary.milliseconds == (2.0 + 3.0 + 4.0 + 5.0) / 4
    assert summary.count == 8
    assert summary.low < summary.milliseconds < summary.high


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_few_samples_have_their_extremes_for_an_interval_and_are_never_tight(count: int) -> None:
    samples = [1.0 + place / 1e6 for place in range(count)]
    summary = summarise(samples)
    assert (summary.low, summary.high) == (samples[0], samples[-1])
    assert not is_tight(summary, 0.5)


def test_samples_that_do_not_differ_are_certain() -> None:
    summary = summarise([0.0017] * 40)
    assert (summary.low, summary.milliseconds, summary.high, summary.spread) == (0.0017, 0.0017, 0.0017, 0.0)
    assert is_tight(summary, 0.0)


def test_the_spread_is_the_distance_of_the_quartiles_over_the_median() -> None:
    assert summarise([1.0, 2.0, 3.0, 4.0, 5.0]).spread == pytest.approx(2.0 / 3.0)


def test_a_series_of_zeros_has_a_figure() -> None:
    summary = summarise([0.0] * 10)
    assert (summary.milliseconds, summary.spread, summary.half_width) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [1.0, math.inf], [-1e-9, 1.0]])
def test_what_is_no_time_is_refused(samples: list[float]) -> None:
    for function in (summarise, find_drift, find_uneven):
        with pytest.raises(FormatError):
            function(samples)


@pytest.mark.parametrize("draw", [NORMAL, SKEWED, HICCUPS], ids=["normal", "skewed", "hiccups"])
@pytest.mark.parametrize("count", [8, 20, 100])
def test_the_interval_holds_the_true_figure_nineteen_times_of_twenty(draw: Draw, count: int) -> None:
    truth = summarise(series(draw, 200_000, seed=99)).milliseconds
    held = 0
    for seed in range(1000):
        summary = summarise(series(draw, count, seed))
        held += summary.low <= truth <= summary.high
    assert 0.93 <= held / 1000 <= 0.985


def test_samples_like_their_neighbours_tell_less() -> None:
    lots = random.Random(1)  # noqa: S311
    wandering, level = [], 0.0
    for _ in range(100):
        level = 0.8 * level + lots.gauss(0.0, 0.01)
        wandering.append(1.0 + level)
    shuffled = random.Random(2).sample(wandering, 100)  # noqa: S311
    assert summarise(wandering).half_width > 1.8 * summarise(shuffled).half_width
    assert summarise(wandering).milliseconds == summarise(shuffled).milliseconds


def test_more_samples_make_it_tight() -> None:
    assert not is_tight(summarise(series(NORMAL, 20)), 0.005)
    assert is_tight(summarise(series(NORMAL, 400)), 0.005)


@pytest.mark.parametrize("change", [1.05, 0.95, 1.3])
@pytest.mark.parametrize("count", [16, 17, 100])
def test_a_change_of_speed_is_drift(change: float, count: int) -> None:
    samples = series(lambda lots: lots.gauss(1.0, 0.005), count)
    drift = find_drift([*samples[: count // 2], *(change * sample for sample in samples[count // 2 :])])
    assert drift is not None
    assert drift.ratio == pytest.approx(change, rel=0.01)


def test_a_slow_slope_is_drift() -> None:
    samples = series(lambda lots: lots.gauss(1.0, 0.01), 60)
    assert find_drift([sample * (1 + place / 600) for place, sample in enumerate(samples)]) is not None


def test_noise_is_no_drift() -> None:
    for draw in (NORMAL, SKEWED, HICCUPS):
        alarms = sum(find_drift(series(draw, 50, seed)) is not None for seed in range(500))
        assert alarms <= 3


def test_a_change_that_does_not_matter_is_no_drift() -> None:
    assert find_drift([1.0] * 50 + [1.01] * 50) is None
    assert find_drift([0.001] * 50 + [0.00103] * 50) is None, "one step of the clock"
    assert find_drift([1.0] * 5 + [2.0] * 5) is None, "too few to tell"
    assert find_drift([1.0] * 40) is None


def test_a_drift_from_nothing_is_endless() -> None:
    assert find_drift([0.0] * 10 + [1.0] * 10) == Drift(before=0.0, after=1.0)
    assert Drift(before=0.0, after=1.0).ratio == math.inf


@pytest.mark.parametrize("count", [20, 40, 100, 200])
def test_one_call_of_twenty_that_does_the_work_of_all_is_uneven(count: int) -> None:
    samples = series(NORMAL, count)
    samples[7::20] = [15.0 * sample for sample in samples[7::20]]
    uneven = find_uneven(samples)
    assert uneven is not None
    assert uneven.calls == tuple(range(7, count, 20))
    assert uneven.excess == pytest.approx(0.7, abs=0.05)
    assert uneven.allowed < uneven.excess


@pytest.mark.parametrize("every", [4, 5, 10])
def test_a_batch_done_in_one_call_is_uneven(every: int) -> None:
    assert find_uneven([1.0 if place % every else float(every) for place in range(40)]) is not None


def test_a_lone_long_call_is_named_so_that_it_can_be_measured_again() -> None:
    uneven = find_uneven([1.0] * 99 + [100.0])
    assert uneven is not None
    assert uneven.calls == (99,)


@pytest.mark.parametrize("count", [1, 8, 20, 50, 100, 1000])
def test_honest_disturbances_are_not_uneven(count: int) -> None:
    for draw in (NORMAL, SKEWED, HICCUPS):
        assert sum(find_uneven(series(draw, count, seed)) is not None for seed in range(500)) == 0


def test_a_series_of_nothing_but_long_calls_is_even() -> None:
    assert find_uneven([0.0] * 20) is None
    assert find_uneven([0.0] * 19 + [1.0]) is not None


def test_two_series_of_one_kernel_do_not_differ_nineteen_times_of_twenty() -> None:
    pairs = [ratio_interval(series(NORMAL, 50, seed), series(NORMAL, 50, seed + 5000)) for seed in range(500)]
    assert 0.92 <= sum(not pair.is_difference for pair in pairs) / 500 <= 0.99


def test_a_real_difference_is_seen_and_its_size_told() -> None:
    ratio = ratio_interval([1.05 * sample for sample in series(NORMAL, 50, 3)], series(NORMAL, 50, 4))
    assert ratio.is_difference
    assert ratio.low < 1.05 < ratio.high
    assert ratio.high - ratio.low < 0.03


def test_one_step_of_a_coarse_clock_is_no_difference() -> None:
    slow, fast = [0.001728] * 50, [0.001696] * 50
    assert not ratio_interval([*slow[1:], 0.00176], [*fast[1:], 0.001664]).is_difference
    assert not ratio_interval(slow, fast).is_difference
    assert ratio_interval([0.0018] * 50, fast).is_difference


def test_an_interval_that_touches_one_is_no_difference() -> None:
    assert not Ratio(ratio=1.1, low=1.0, high=1.2).is_difference


@pytest.mark.parametrize("samples", [[1.0] * 7, [0.0, *[1.0] * 9]])
def test_a_ratio_needs_enough_times_above_zero(samples: list[float]) -> None:
    with pytest.raises(FormatError, match="8 samples above zero"):
        ratio_interval([1.0] * 10, samples)


def test_a_hundred_samples_take_less_than_a_millisecond() -> None:
    samples = series(HICCUPS, 100)

    def once() -> float:
        began = time.perf_counter()
        summarise(samples)
        find_drift(samples)
        find_uneven(samples)
        return time.perf_counter() - began

    assert min(once() for _ in range(20)) < 0.001
