from __future__ import annotations

import re

from fib_tools.model.workload import RandomInput, Workload
from fib_tools.publish.markup import join
from fib_tools.publish.view.workloads import describe_lengths, show_workloads
from view_world import make_definitions

(NORM, *_) = make_definitions()


def make(size: int, count: int | None = None) -> Workload:
    inputs = {name: RandomInput() for name in NORM.inputs}
    return Workload(axes={"batch_size": size}, inputs=inputs, uuid=f"w{size}", count=count)


def read_bars(*workloads: Workload) -> list[tuple[str, str]]:
    text = join(show_workloads(NORM, workloads))
    return re.findall(r'style="height:([0-9.]+)%"></span><span class="len">([^<]*)<', text)


def test_a_bar_is_as_high_as_its_share_of_the_calls() -> None:
    assert read_bars(make(1, 300), make(16, 100), make(2048, 100)) == [("100.0", "1"), ("33.3", "16"), ("33.3", "2Ki")]
    assert read_bars(make(1), make(7)) == [("100.0", "1"), ("100.0", "7")], "without counts each counts once"


def test_many_lengths_are_joined_between_powers_of_two() -> None:
    bars = read_bars(*(make(size) for size in range(1, 1001)))
    assert len(bars) <= 16
    assert [text for _, text in bars[:3]] == ["≥1", "≥2", "≥4"]
    heights = [float(height) for height, _ in bars]
    assert heights[:9] == sorted(heights[:9])
    assert heights[8] / heights[7] == 2.0
    assert read_bars(*(make(size) for size in range(40)))[0][1] == "≥0"


def test_of_very_many_workloads_the_table_shows_the_first() -> None:
    text = join(show_workloads(NORM, [make(size) for size in range(1, 1001)]))
    assert text.count("<tr>") == 201
    assert "800 more in" in text


def test_the_lengths_of_each_axis_are_told() -> None:
    assert describe_lengths(NORM, [make(4), make(4096)]) == {"batch_size": "4 … 4,096"}
    assert describe_lengths(NORM, [make(4)]) == {"batch_size": "4"}
    assert describe_lengths(NORM, []) == {}


def test_without_workloads_it_is_said_where_they_come_from() -> None:
    assert "fib collect" in join(show_workloads(NORM, []))
