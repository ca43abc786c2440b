from __future__ import annotations

from fib_tools.phases.drafting import shorten_name


def test_long_names_that_begin_alike_are_told_apart_and_short_ones_stay() -> None:
    assert shorten_name("rmsnorm_h128") == "rmsnorm_h128"
    assert shorten_name("x" * 60) == "x" * 60
    one, other = (shorten_name("x" * 60 + end) for end in ("_decode", "_prefill"))
    assert one != other
    assert len(one) == len(other) == 60
    assert one.startswith("x" * 50)
