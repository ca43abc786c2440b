"""Our traces in Perfetto's own trace processor: what SQL says of them is what the timeline said."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from example_timeline import EXTREME, make_timeline
from fib_tools.capture.forward.record import record_forward
from fib_tools.capture.perfetto import format_trace
from fib_tools.capture.timeline import Span, Timeline
from fib_tools.capture.timeline_arrows import find_arrows
from fib_tools.capture.timeline_kernels import ProfilerEvent, place_kernels
from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.model.trace import EvaluationStatus
from fib_tools.phases.trace_best import Best, annotate_best
from tiny_forward import make_model, make_prompt
from trace_processor import PACKAGE, TraceProcessor, open_trace

TIMELINE = make_timeline(layers=2, modules=2, operators=3)
SPANS = TIMELINE.spans
BY_START = "select slice.*, thread.name as thread from slice join thread_track on slice.track_id = thread_track.id join thread using (utid) order by ts, slice.id"


@pytest.fixture(scope="module")
def node(node_path: str) -> str:
    if not PACKAGE.is_dir():
        pytest.skip("Perfetto's trace processor is not installed: make clients")
    found = shutil.which("node", path=node_path)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def trace(node: str) -> Iterator[TraceProcessor]:
    with open_trace(node, format_trace(TIMELINE)) as processor:
        yield processor


def test_nothing_was_dropped_or_misunderstood(trace: TraceProcessor) -> None:
    assert trace.query("select name, value from stats where severity != 'info' and value != 0") == []


def test_every_span_is_a_slice_with_its_times_and_kind(trace: TraceProcessor) -> None:
    rows = [(row["name"], row["category"], row["ts"], row["dur"], row["thread"]) for row in trace.query(BY_START)]
    assert rows == [
        (span.name, span.kind, span.start_ns, span.duration_ns, "device" if span.kind == "kernel" else "host")
        for span in SPANS
    ]


def test_slices_nest_as_the_spans_do(trace: TraceProcessor) -> None:
    rows = trace.query(BY_START)
    places = {row["id"]: place for place, row in enumerate(rows)}
    on_host = [span if span.kind != "kernel" else span.model_copy(update={"parent": None}) for span in SPANS]
    assert [places.get(row["parent_id"]) for row in rows] == [span.parent for span in on_host]
    depths = {"model": 0, "layer": 1, "module": 2, "operator": 3, "step": 4, "kernel": 0}
    assert [row["depth"] for row in rows] == [depths[span.kind] for span in SPANS]


def test_children_never_take_longer_than_their_parent(trace: TraceProcessor) -> None:
    (row,) = trace.query(
        "select count(*) as parents, sum(inside > whole) as longer from (select sum(child.dur) as inside, parent.dur as whole"
        " from slice child join slice parent on child.parent_id = parent.id group by parent.id)"
    )
    assert row["longer"] == 0
    assert row["parents"] == len({span.parent for span in SPANS if span.kind != "kernel"} - {None})


def read_annotations(trace: TraceProcessor) -> dict[int, dict[str, object]]:
    """Each slice's, by its id."""
    found: dict[int, dict[str, object]] = {}
    for row in trace.query(
        "select slice.id, key, coalesce(int_value, real_value, string_value) as value, value_type"
        " from slice join args using (arg_set_id) where key glob 'debug.*'"
    ):
        value = bool(row["value"]) if row["value_type"] == "bool" else row["value"]
        found.setdefault(row["id"], {})[row["key"].removeprefix("debug.")] = value
    return found


def expect_annotations(span: Span) -> dict[str, object]:
    expected: dict[str, object] = {"kind": span.kind, **span.details}
    for side, notes in (("inputs", span.inputs), ("outputs", span.outputs)):
        for note in notes:
            told = {"dtype": note.dtype, "shape": str(list(note.shape)), "strides": str(list(note.strides))}
            numbers = {"bytes": note.bytes} if note.key is None else {"bytes": note.bytes, "storage": note.key}
            expected.update({f"{side}.{note.name}.{field}": value for field, value in {**told, **numbers}.items()})
    return expected


def test_every_slice_is_annotated_with_all_that_is_known(trace: TraceProcessor) -> None:
    found = read_annotations(trace)
    assert [found[row["id"]] for row in trace.query(BY_START)] == [expect_annotations(span) for span in SPANS]


def test_annotations_are_typed(trace: TraceProcessor) -> None:
    rows = trace.query("select distinct key, value_type from args where key glob 'debug.*' order by key")
    types = {row["key"].removeprefix("debug."): row["value_type"] for row in rows}
    assert types["flops"] == types["inputs.x.bytes"] == "int"
    assert types["arithmetic_intensity"] == "real"
    assert types["is_prefill"] == "bool"
    assert types["definition"] == types["inputs.x.shape"] == "string"


def test_every_arrow_is_a_flow_between_its_two_slices(trace: TraceProcessor) -> None:
    places = {row["id"]: place for place, row in enumerate(trace.query(BY_START))}
    flows = {(places[row["slice_out"]], places[row["slice_in"]]) for row in trace.query("select * from flow")}
    assert flows == {(arrow.source, arrow.target) for arrow in find_arrows(TIMELINE)}
    assert len(flows) == len(find_arrows(TIMELINE)) > 20


def test_no_flow_leads_to_the_slice_itself_or_its_parent(trace: TraceProcessor) -> None:
    sql = (
        "select flow.* from flow join slice on slice_in = slice.id where slice_out = slice_in or slice_out = parent_id"
    )
    assert trace.query(sql) == []


def test_counters_have_their_values_and_units(trace: TraceProcessor) -> None:
    tracks = trace.query("select process_counter_track.id, name, unit from process_counter_track order by id")
    assert [(row["name"], row["unit"]) for row in tracks] == [("memory", "bytes"), ("achieved bandwidth (GB/s)", None)]
    points = trace.query("select track_id, ts, value from counter order by ts")
    for row, counter in zip(tracks, TIMELINE.counters, strict=True):
        own = [(point["ts"], point["value"]) for point in points if point["track_id"] == row["id"]]
        assert own == list(counter.points)


def test_the_process_and_its_threads_have_names(trace: TraceProcessor) -> None:
    rows = trace.query(
        "select process.name as process, thread.name, is_main_thread from thread join process using (upid) order by tid"
    )
    assert [tuple(row.values()) for row in rows] == [("Llama on a test", "host", 1), ("Llama on a test", "device", 0)]


def test_the_run_as_a_whole_is_described_on_the_process(trace: TraceProcessor) -> None:
    (row,) = trace.query("select slice.* from slice join process_track on slice.track_id = process_track.id")
    assert (row["name"], row["dur"], row["ts"]) == ("about this run", 0, SPANS[0].start_ns)
    assert read_annotations(trace)[row["id"]] == TIMELINE.details


def test_ties_in_time_keep_the_nesting(node: str) -> None:
    rows = [("a", 5, 9, None), ("b", 5, 7, 0), ("c", 5, 5, 1), ("d", 7, 9, 0), ("e", 9, 9, 3), ("f", 9, 12, None)]
    spans = tuple(
        Span(name=name, kind="operator", start_ns=start, end_ns=end, parent=parent) for name, start, end, parent in rows
    )
    with open_trace(node, format_trace(Timeline(name="ties", spans=spans))) as trace:
        found = trace.query("select name, ts, ts + dur as till, parent_id from slice order by id")
    assert [tuple(row.values()) for row in found] == rows


def test_extremes_are_shown_too(node: str) -> None:
    with open_trace(node, format_trace(EXTREME)) as trace:
        assert trace.query("select name, value from stats where severity != 'info' and value != 0") == []
        rows = trace.query(BY_START)
        (flow,) = trace.query("select * from flow")
    assert [(row["name"], row["ts"], row["dur"], row["depth"], row["thread"]) for row in rows] == [
        ("a", 0, 2**62, 0, "host"),
        ("b", 0, 0, 1, "host"),
        ("k", 0, 9, 0, "GPU 0 stream 7"),
        ("part of k", 0, 9, 1, "GPU 0 stream 7"),
        ("on its own", 3, 0, 0, "device"),
    ]
    names = {row["id"]: row["name"] for row in rows}
    assert (names[flow["slice_out"]], names[flow["slice_in"]]) == ("b", "k")


def record_block() -> Timeline:
    """Run a block here, and give it what only a GPU and a dataset could: kernels, and a Solution that is known."""
    model = make_model("llama", attn_implementation="eager")
    timeline = record_forward(model, make_prompt((12, 8)), name="block", layers={1})
    known = Measurement(
        definition="gemm_n64_k64",
        op_type="gemm",
        author="ana",
        solution="fast",
        workload="w",
        device="NVIDIA H200",
        measured_by="fib-tools",
        status=EvaluationStatus.PASSED,
        milliseconds=0.5,
        percent=84.25,
    )
    best = Best(measurements={known.definition: (known,)}, axes={"w": {"M": 64}})
    events = [
        ProfilerEvent(
            role=role, name=f"k{number}", start_ns=step.start_ns + 1, end_ns=step.end_ns, correlation=number, stream=7
        )
        for number, step in enumerate((span for span in timeline.spans if span.name == "mm"), start=1)
        for role in ("launch", "kernel")
    ]
    return place_kernels(annotate_best(timeline, best), events)


def test_a_block_that_was_recorded_says_in_sql_what_was_found(node: str) -> None:
    block = record_block()
    with open_trace(node, format_trace(block)) as trace:
        assert trace.query("select name, value from stats where severity != 'info' and value != 0") == []
        rows, found = trace.query(BY_START), read_annotations(trace)
        kernels = trace.query(
            "select step.name as step, kernel.name as kernel, thread.name as track from flow"
            " join slice step on slice_out = step.id join slice kernel on slice_in = kernel.id"
            " join thread_track on kernel.track_id = thread_track.id join thread using (utid)"
            " where kernel.category = 'kernel' order by kernel.ts"
        )
        counters = trace.query(
            "select name, max(value) as most from counter join counter_track on track_id = counter_track.id group by name"
        )
    assert [row["name"] for row in rows] == [span.name for span in block.spans]
    assert all("op_type" in found[row["id"]] for row in rows)
    best = [found[row["id"]] for row in rows if found[row["id"]].get("definition") == "gemm_n64_k64"]
    assert len(best) == 2
    assert {(each["best_solution"], each["best_percent_of_limit"], each["best_measured_on"]) for each in best} == {
        ("ana/fast", 84.2, "NVIDIA H200")
    }
    products = [span for span in block.spans if span.name == "mm"]
    assert [tuple(row.values()) for row in kernels] == [
        ("mm", f"k{number}", "GPU 0 stream 7") for number in range(1, len(products) + 1)
    ]
    most = {counter.name: max(value for _, value in counter.points) for counter in block.counters}
    told = {str(row["name"]).removesuffix(" (GB/s)"): row["most"] for row in counters}
    assert told == most
    assert most["live memory"] > most["live activations"] > 0
