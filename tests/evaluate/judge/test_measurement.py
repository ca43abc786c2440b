from __future__ import annotations

import random

import pytest

from fib_tools.evaluate.judge.contest import Entrant
from fib_tools.evaluate.judge.measurement import as_series, count_missing, find_fault, has_enough
from fib_tools.evaluate.judge.trial import Trial
from fib_tools.model.evidence import Launch, OutputErrors, Timer
from fib_tools.model.solution import BuildSpec, Language, Solution, SourceFile

SPEC = BuildSpec(language=Language.PYTHON, target_hardware=["cuda"], entry_point="main.py::run")
SOLUTION = Solution(name="s", definition="d", author="a", spec=SPEC, sources=[SourceFile(path="main.py", content="x")])


def noisy(milliseconds: float, count: int, share: float = 0.002, seed: int = 0) -> list[float]:
    draw = random.Random(seed)  # noqa: S311  # not a secret
    return [milliseconds * (1 + draw.gauss(0, share)) for _ in range(count)]


def trial(**own: list[float]) -> Trial:
    return Trial(entrant=Entrant(solution=SOLUTION), **own)  # type: ignore[arg-type]


def test_steady_times_are_enough_and_unsteady_ones_are_asked_for_again() -> None:
    assert has_enough(trial(fresh=[0.01], again=noisy(0.01, 16)), is_cpu=False)
    assert not has_enough(trial(fresh=[0.01], again=noisy(0.01, 16, share=0.1)), is_cpu=False)
    assert not has_enough(trial(fresh=[0.01], again=noisy(0.01, 16) + noisy(0.02, 16)), is_cpu=False)


def test_as_many_more_samples_are_asked_for_as_make_the_figure_sure() -> None:
    few = trial(fresh=[0.01], again=noisy(0.01, 32, share=0.03))
    missing = count_missing(few)
    assert 32 < missing < 512
    assert not has_enough(few, is_cpu=False)
    assert has_enough(trial(fresh=[0.01], again=noisy(0.01, 32 + missing, share=0.03)), is_cpu=False)
    assert count_missing(trial(fresh=[0.01], again=noisy(0.01, 64))) == 0


def test_a_slow_solution_is_not_asked_for_more_than_it_has_given() -> None:
    assert has_enough(trial(fresh=[500.0], again=[600.0, 900.0]), is_cpu=False)


def test_honest_times_have_no_fault() -> None:
    assert find_fault(trial(fresh=[0.0101], again=noisy(0.01, 32), eager=noisy(0.02, 8)), is_cpu=False) is None


@pytest.mark.parametrize(("known", "rule"), [(0.005, "memory"), (0.008, "memory"), (0.0095, None)])
def test_calls_that_are_faster_on_known_contents_come_from_memory(known: float, rule: str | None) -> None:
    fault = find_fault(trial(fresh=[0.01], again=noisy(known, 32)), is_cpu=False)
    assert (fault.rule if fault else None) == rule


def test_a_tiny_kernels_first_dozen_calls_may_differ_by_chance() -> None:
    assert find_fault(trial(fresh=[0.0020], again=noisy(0.0016, 32)), is_cpu=False) is None


def test_calls_that_do_the_work_of_others_are_seen() -> None:
    eager = [0.3, 0.3, *noisy(0.01, 22)]
    fault = find_fault(trial(fresh=[0.01], again=noisy(0.01, 32), eager=eager), is_cpu=False)
    assert fault is not None
    assert fault.rule == "uneven"


def test_drift_refuses_the_measurement_and_says_so() -> None:
    fault = find_fault(trial(fresh=[0.01], again=noisy(0.01, 16) + noisy(0.02, 16)), is_cpu=False)
    assert fault is not None
    assert fault.rule == "drift"
    assert "not the Solution" in fault.detail


def test_a_series_keeps_its_samples_and_how_they_were_launched() -> None:
    series = as_series([1.0, 2.0, 3.0, 4.0], Timer.GRAPH, Launch.GRAPH)
    assert (series.milliseconds, series.samples, series.launch) == (2.5, [1.0, 2.0, 3.0, 4.0], Launch.GRAPH)


def test_errors_of_several_comparisons_are_put_together() -> None:
    whole = trial()
    errors = {"max_relative": 0.1, "rtol": 0.01, "atol": 0.01}
    whole.take_errors({"y": OutputErrors(max_absolute=1.0, mean_absolute=1.0, rms=3.0, misses=1, values=10, **errors)})
    whole.take_errors({"y": OutputErrors(max_absolute=2.0, mean_absolute=4.0, rms=3.0, misses=0, values=30, **errors)})
    joined = whole.errors["y"]
    assert (joined.max_absolute, joined.misses, joined.values) == (2.0, 1, 40)
    assert joined.mean_absolute == pytest.approx(3.25)
    assert joined.rms == pytest.approx(3.0)
