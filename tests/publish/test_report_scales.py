from __future__ import annotations

import math

import pytest

from fib_tools.publish.report_scales import (
    format_bytes,
    format_factor,
    format_ms,
    format_number,
    format_percent,
    linear_scale,
    log_scale,
)


@pytest.mark.parametrize("span", [1.0, 1.001, 1.3, 2.5, 8.0, 40.0, 3e3, 1e7])
@pytest.mark.parametrize("low", [3e-6, 0.07, 0.9, 1.0, 640.0])
def test_a_log_axis_holds_its_values_and_has_a_few_round_ticks(low: float, span: float) -> None:
    scale = log_scale([low, low * span])
    assert 0 < scale.place(low) < 100
    assert 0 < scale.place(low * span) < 100
    assert 1 <= len(scale.ticks) <= 7
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
    assert all(len(f"{tick:.3e}".rstrip("0e+-123456789")) < 6 for tick in scale.ticks)


@pytest.mark.parametrize("values", [[0.5, 3.0], [0.96, 1.04], [0.01, 90.0], [0.3, 9.0]])
def test_the_baseline_has_a_tick(values: list[float]) -> None:
    assert 1.0 in log_scale(values, include=1.0).ticks


def test_an_axis_without_values_is_an_axis() -> None:
    assert log_scale([]).place(1.0) == pytest.approx(50.0)
    assert log_scale([0.0, math.inf]).ticks
    assert linear_scale(0.0).place(0.5) == pytest.approx(50.0)


def test_values_beyond_an_end_stand_at_it() -> None:
    scale = log_scale([1.0, 10.0])
    assert (scale.place(1e-9), scale.place(1e9)) == (0.0, 100.0)


@pytest.mark.parametrize("high", [0.03, 0.9, 4.1, 7.0, 88.0])
def test_a_linear_axis_begins_at_zero(high: float) -> None:
    scale = linear_scale(high)
    assert scale.ticks[0] == 0.0
    assert 3 <= len(scale.ticks) <= 8
    assert scale.place(high) == pytest.approx(100 / 1.06)


def test_values_are_written_for_people() -> None:
    assert [format_ms(value) for value in (None, 0.0017, 0.25, 1.0, 12.3456, 2500.0, 2e6)] == [
        "\u2013", "1.700 \u00b5s", "250.0 \u00b5s", "1.000 ms", "12.35 ms", "2.500 s", "2000 s",
    ]  # fmt: skip
    assert [format_factor(value) for value in (None, 0.012, 1.234, 250.0)] == [
        "\u2013",
        "0.012\u00d7",
        "1.23\u00d7",
        "250\u00d7",
    ]
    assert [format_percent(value) for value in (None, 3.21, 91.7)] == ["\u2013", "3.2%", "92%"]
    assert [format_number(value) for value in (0.0, 0.25, 1000.0, 1e6, 2.5e-5)] == [
        "0",
        "0.25",
        "1000",
        "10\u2076",
        "2.5\u00b710\u207b\u2075",
    ]
    assert [format_bytes(value) for value in (12, 3.4e6, 5e13)] == ["12 B", "3.4 MB", "50 TB"]
