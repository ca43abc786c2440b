from __future__ import annotations

from example_timeline import make_timeline
from fib_tools.capture.perfetto import format_trace
from fib_tools.capture.perfetto_reading import parse_trace
from fib_tools.capture.timeline import Span, Timeline
from fib_tools.capture.timeline_diff import DiffRow, diff_timelines


def make_block(*parts: tuple[str, int]) -> Timeline:
    """A layer and what runs in it, one after the other."""
    spans = [Span(name="block", kind="layer", start_ns=100, end_ns=100 + sum(spent for _, spent in parts))]
    now = 100
    for name, spent in parts:
        spans.append(Span(name=name, kind="operator", start_ns=now, end_ns=now + spent, parent=0))
        now += spent
    return Timeline(name="t", spans=tuple(spans))


def test_two_runs_are_compared_path_by_path() -> None:
    before = make_block(("norm", 10), ("gemm", 40), ("silu", 5), ("gemm", 20))
    after = make_block(("fused", 3), ("norm", 10), ("gemm", 15), ("gemm", 15), ("gemm", 0), ("extra", 1))
    rows = diff_timelines(before, after)
    assert rows == (
        DiffRow(path="block", kind="layer", before_ns=75, after_ns=44, before_runs=1, after_runs=1),
        DiffRow(path="block/fused", kind="operator", after_ns=3, after_runs=1),
        DiffRow(path="block/norm", kind="operator", before_ns=10, after_ns=10, before_runs=1, after_runs=1),
        DiffRow(path="block/gemm", kind="operator", before_ns=60, after_ns=30, before_runs=2, after_runs=3),
        DiffRow(path="block/extra", kind="operator", after_ns=1, after_runs=1),
        DiffRow(path="block/silu", kind="operator", before_ns=5, before_runs=1),
    )
    assert [row.ratio for row in rows] == [44 / 75, None, 1.0, 0.5, None, None]


def test_what_took_no_time_has_no_ratio() -> None:
    rows = diff_timelines(make_block(("view", 0)), make_block(("view", 3)))
    assert [(row.before_ns, row.ratio) for row in rows] == [(0, None), (0, None)]


def test_another_root_stands_where_it_ran() -> None:
    other = make_block().model_copy(update={"spans": (Span(name="embed", kind="module", start_ns=1, end_ns=2),)})
    assert [row.path for row in diff_timelines(make_block(("a", 1)), other)] == ["embed", "block", "block/a"]


def test_traces_that_were_written_are_compared_as_the_timelines_were() -> None:
    before, after = make_timeline(layers=1), make_timeline(layers=2)
    read = [parse_trace(format_trace(timeline), where="t") for timeline in (before, after)]
    assert diff_timelines(*read) == diff_timelines(before, after)
