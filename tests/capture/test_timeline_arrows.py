from __future__ import annotations

from example_timeline import make_timeline, note
from fib_tools.capture.timeline import Kind, Span, Timeline
from fib_tools.capture.timeline_arrows import find_arrows


def make_span(
    start: int,
    end: int,
    parent: int | None = None,
    *,
    reads: tuple[int, ...] = (),
    writes: tuple[int, ...] = (),
    kind: Kind = "operator",
) -> Span:
    inputs = tuple(note(f"in{key}", key, 1) for key in reads)
    outputs = tuple(note(f"out{key}", key, 1) for key in writes)
    return Span(name="s", kind=kind, start_ns=start, end_ns=end, parent=parent, inputs=inputs, outputs=outputs)


def list_arrows(*spans: Span) -> list[tuple[int, int]]:
    return [(arrow.source, arrow.target) for arrow in find_arrows(Timeline(name="t", spans=spans))]


def test_data_goes_from_its_producer_to_each_consumer() -> None:
    spans = [make_span(0, 1, writes=(7,)), make_span(1, 2, reads=(7,)), make_span(3, 4, reads=(7, 8))]
    assert list_arrows(*spans) == [(0, 1), (0, 2)]


def test_only_the_last_that_wrote_counts() -> None:
    in_place = make_span(2, 3, reads=(7,), writes=(7,))
    assert list_arrows(make_span(0, 1, writes=(7,)), in_place, make_span(4, 5, reads=(7,))) == [(0, 1), (1, 2)]


def test_of_spans_inside_each_other_the_innermost_counts() -> None:
    producer = [make_span(0, 9, writes=(7,)), make_span(1, 8, 0, writes=(7,)), make_span(2, 3, 1, writes=(7,))]
    consumer = [make_span(10, 19, reads=(7,)), make_span(11, 12, 3, reads=(7,))]
    assert list_arrows(*producer, *consumer) == [(2, 4)]


def test_no_arrow_leads_to_the_span_itself_or_from_what_it_is_a_part_of() -> None:
    itself = make_span(0, 9, reads=(7,), writes=(7,))
    assert list_arrows(itself) == []
    at_the_end = make_span(9, 9, 0, reads=(8,))
    assert list_arrows(make_span(0, 9, writes=(8,)), at_the_end) == []
    assert list_arrows(make_span(3, 3, writes=(7,)), make_span(3, 3, 0), make_span(3, 3, 1, reads=(7,))) == []


def test_what_was_not_done_yet_hands_nothing_on() -> None:
    assert list_arrows(make_span(0, 9), make_span(1, 4, 0, writes=(7,)), make_span(3, 5, reads=(7,))) == []


def test_a_launch_goes_to_the_kernel_and_the_kernels_tensors_to_nobody() -> None:
    operator, kernel = make_span(0, 5), make_span(3, 12, 0, writes=(7,), kind="kernel")
    assert list_arrows(operator, kernel, make_span(13, 14, reads=(7,))) == [(0, 1)]


def test_two_tensors_of_one_storage_are_one_arrow() -> None:
    split = Span(name="split", kind="operator", start_ns=2, end_ns=3, inputs=(note("q", 7, 1), note("k", 7, 1)))
    assert list_arrows(make_span(0, 1, writes=(7,)), split) == [(0, 1)]


def test_a_chain_of_operators_is_a_chain_of_arrows() -> None:
    timeline = make_timeline(layers=2, modules=2, operators=3)
    names = [span.name for span in timeline.spans]
    arrows = [(timeline.spans[arrow.source], timeline.spans[arrow.target]) for arrow in find_arrows(timeline)]
    launches = [pair for pair in arrows if pair[1].kind == "kernel"]
    assert len(launches) == names.count("kernel_of_proj_0") * 3 == 12
    data = [(source.name, target.name) for source, target in arrows if target.kind == "operator"]
    assert data == [(f"proj_{number % 3}", f"proj_{(number + 1) % 3}") for number in range(11)]
