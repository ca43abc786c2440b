from __future__ import annotations

import math

import pytest

from fib_tools.evaluate.judge.runner import read_numbers


@pytest.mark.parametrize(
    ("said", "numbers"),
    [
        ([1, 2.5], [1.0, 2.5]),
        ([True, "3", None, [4], -1, -0.5], []),
        ([math.nan, math.inf, -math.inf, 10**400, -(10**400), 7], [7.0]),
        ("12", []),
        ({"0": 1}, []),
    ],
)
def test_of_what_a_runner_says_only_finite_times_are_taken(said: object, numbers: list[float]) -> None:
    assert read_numbers(said) == numbers
