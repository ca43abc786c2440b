from __future__ import annotations

import pytest

from fib_tools.capture.perfetto import format_trace
from fib_tools.capture.perfetto_reading import parse_trace
from fib_tools.capture.timeline import Span, Timeline, check_nesting
from fib_tools.capture.timeline_arrows import find_arrows
from fib_tools.capture.timeline_kernels import BANDWIDTH, ProfilerEvent, place_kernels

US = 1000
STEP = {"op_type": "aten.mm.default", "bytes": 6000, "flops": 900, "arithmetic_intensity": 0.15}


def make_timeline() -> Timeline:
    """A linear that is one step, an attention of two, and nothing behind them."""
    rows = (
        ("model", "model", 0, 100, None, {"op_type": "model"}),
        ("linear", "operator", 10, 40, 0, {"op_type": "gemm"}),
        ("mm", "step", 12, 38, 1, STEP),
        ("attention", "operator", 50, 90, 0, {"op_type": "gqa_ragged"}),
        ("softmax", "step", 52, 70, 3, {**STEP, "op_type": "aten._softmax.default"}),
        ("pv", "step", 71, 88, 3, {**STEP, "op_type": "aten.bmm.default"}),
    )
    spans = tuple(
        Span(name=name, kind=kind, start_ns=start * US, end_ns=end * US, parent=parent, details=details)  # type: ignore[arg-type]
        for name, kind, start, end, parent, details in rows
    )
    return Timeline(name="t", spans=spans)


def operation(number: int, name: str, start: float, end: float) -> ProfilerEvent:
    return ProfilerEvent(role="operation", name=name, start_ns=int(start * US), end_ns=int(end * US), operation=number)


def launch(correlation: int, start: float, *, number: int = 0) -> ProfilerEvent:
    return ProfilerEvent(
        role="launch",
        name="cudaLaunchKernel",
        start_ns=int(start * US),
        end_ns=int((start + 2) * US),
        correlation=correlation,
        operation=number,
    )


def kernel(name: str, correlation: int, start: float, end: float, **more: int) -> ProfilerEvent:
    return ProfilerEvent(
        role="kernel",
        name=name,
        start_ns=int(start * US),
        end_ns=int(end * US),
        correlation=correlation,
        operation=more.get("number", 0),
        stream=more.get("stream", 7),
        device=more.get("device", 0),
        details={"grid": "[8, 1, 1]"},
    )


def tell(timeline: Timeline) -> list[tuple[str, str, str]]:
    """Each kernel: its path, its track, and its op_type."""
    return [
        (path, span.track_name, str(span.details["op_type"]))
        for path, span in zip(timeline.list_paths(), timeline.spans, strict=True)
        if span.kind == "kernel"
    ]


def test_kernels_stand_under_the_innermost_span_that_was_open_when_they_were_launched() -> None:
    events = [
        operation(1, "aten::mm", 13, 30),
        launch(11, 20, number=1),
        kernel("nvjet", 11, 24, 34, number=1),
        operation(2, "aten::_softmax", 53, 69),
        launch(12, 55, number=2),
        launch(13, 58, number=2),
        kernel("max", 12, 57, 59, number=2),
        kernel("sum", 13, 60, 64, number=2),
    ]
    placed = place_kernels(make_timeline(), events)
    assert tell(placed) == [
        ("model/linear/mm/nvjet", "GPU 0 stream 7", "aten.mm.default"),
        ("model/attention/softmax/max", "GPU 0 stream 7", "aten._softmax.default"),
        ("model/attention/softmax/sum", "GPU 0 stream 7", "aten._softmax.default"),
    ]
    assert [span.name for span in placed.spans] == [
        *("model", "linear", "mm", "nvjet", "attention", "softmax", "max", "sum", "pv")
    ]
    first = placed.spans[3]
    assert first.details == {**STEP, "grid": "[8, 1, 1]", "operation": "aten::mm", "launched_by": "model/linear/mm"}
    assert "bytes" not in placed.spans[6].details, "of two kernels of a step nobody knows which moved what"
    host = tuple(span.model_copy(update={"parent": None}) for span in placed.spans if span.kind != "kernel")
    assert host == tuple(span.model_copy(update={"parent": None}) for span in make_timeline().spans)


def test_an_arrow_leads_from_the_launcher_to_the_kernel_and_the_file_is_read_back() -> None:
    placed = place_kernels(make_timeline(), [launch(11, 20), kernel("nvjet", 11, 24, 34)])
    check_nesting(placed)
    assert [(arrow.source, arrow.target) for arrow in find_arrows(placed)] == [(2, 3)]
    assert parse_trace(format_trace(placed), where="t") == placed


def test_bandwidth_is_what_a_step_moves_over_the_time_of_its_kernels() -> None:
    events = [launch(1, 55), launch(2, 56), kernel("a", 1, 57, 59), kernel("b", 2, 60, 69), launch(3, 75)]
    (counter,) = place_kernels(make_timeline(), events).counters
    assert (counter.name, counter.unit) == (BANDWIDTH, "GB/s")
    assert counter.points == ((57 * US, 0.5), (69 * US, 0.0))


def test_a_kernel_may_run_long_after_its_launcher_has_ended() -> None:
    placed = place_kernels(make_timeline(), [launch(11, 20), kernel("late", 11, 120, 130)])
    assert tell(placed)[0][0] == "model/linear/mm/late"
    assert placed.spans[-1].name == "late"
    check_nesting(placed)


def test_without_its_launch_the_operation_tells_who_it_was() -> None:
    events = [operation(1, "aten::bmm", 72, 80), kernel("captured", 99, 75, 79, number=1)]
    assert tell(place_kernels(make_timeline(), events))[0][0] == "model/attention/pv/captured"


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([kernel("k", 5, 20, 30)], "nobody launched it"),
        ([launch(5, 20), kernel("k", 5, 11.5, 30)], "it seems to begin before the step that launched it"),
        ([launch(5, 150), kernel("k", 5, 151, 160)], "it was launched when everything was over"),
        ([launch(5, -5), kernel("k", 5, 1, 2)], "it was launched before everything"),
    ],
)
def test_a_kernel_of_nobody_has_no_parent(events: list[ProfilerEvent], why: str) -> None:
    placed = place_kernels(make_timeline(), events)
    (alone,) = [span for span in placed.spans if span.kind == "kernel"]
    assert alone.parent is None, why
    assert alone.details == {"op_type": "kernel", "grid": "[8, 1, 1]"}
    check_nesting(placed)


def test_what_is_launched_between_two_steps_belongs_to_the_span_around_them() -> None:
    placed = place_kernels(make_timeline(), [launch(1, 45), kernel("copy", 1, 46, 47)])
    assert tell(placed) == [("model/copy", "GPU 0 stream 7", "model")]


def test_streams_and_devices_have_tracks_and_what_overlaps_in_one_a_second() -> None:
    events = [
        kernel("a", 1, 20, 30),
        kernel("b", 2, 29, 35),
        kernel("c", 3, 30, 40),
        kernel("d", 4, 20, 30, stream=9),
        kernel("e", 5, 20, 30, device=1),
    ]
    tracks = {path: track for path, track, _ in tell(place_kernels(make_timeline(), events))}
    assert tracks == {
        "a": "GPU 0 stream 7",
        "b": "GPU 0 stream 7 (2)",
        "c": "GPU 0 stream 7",
        "d": "GPU 0 stream 9",
        "e": "GPU 1 stream 7",
    }
    check_nesting(place_kernels(make_timeline(), events))


def test_on_a_cpu_nothing_changes() -> None:
    timeline = make_timeline()
    assert place_kernels(timeline, [operation(1, "aten::mm", 13, 30)]) is timeline
