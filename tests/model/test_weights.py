from __future__ import annotations

import pytest

from fib_tools.model.weights import find_weights, geometric_mean, is_weighted


def test_workloads_weigh_as_often_as_they_occur_and_the_same_unless_all_say_it() -> None:
    assert find_weights({"a": 3, "b": 1}) == {"a": 0.75, "b": 0.25}
    assert find_weights({"a": 3, "b": None}) == {"a": 0.5, "b": 0.5}
    assert find_weights({}) == {}
    assert [is_weighted(counts) for counts in ((3, 1), (3, None), ())] == [True, False, False]


def test_the_mean_needs_no_weights_that_add_up_to_one() -> None:
    assert geometric_mean([(3, 2.0), (1, 32.0)]) == pytest.approx(4.0)
