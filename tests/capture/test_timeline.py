from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from example_timeline import make_timeline, note
from fib_tools.capture.timeline import Span, Timeline, check_nesting
from fib_tools.errors import FormatError


def make_spans(*rows: tuple[str, int, int, int | None], **fields: Any) -> Timeline:
    spans = [
        Span(name=name, kind="operator", start_ns=start, end_ns=end, parent=parent) for name, start, end, parent in rows
    ]
    return Timeline(name="t", spans=tuple(spans), **fields)


def test_a_timeline_survives_json() -> None:
    timeline = make_timeline()
    assert Timeline.model_validate_json(timeline.model_dump_json()) == timeline


def test_a_path_names_the_parents() -> None:
    paths = make_timeline(layers=1, modules=1, operators=1).list_paths()
    whole = "LlamaForCausalLM/layers.0/module_0/proj_0"
    assert paths[3:] == [whole, f"{whole}/pass 0", f"{whole}/pass 1", f"{whole}/kernel_of_proj_0"]


@pytest.mark.parametrize(
    "timeline",
    [
        make_timeline(),
        make_spans(("a", 0, 10, None), ("b", 0, 5, 0), ("c", 5, 10, 0), ("d", 10, 10, 2)),
        make_spans(("a", 3, 3, None), ("b", 3, 3, 0), ("c", 3, 4, None)),
        Timeline(name="empty", spans=()),
    ],
)
def test_spans_inside_each_other_or_apart_nest(timeline: Timeline) -> None:
    check_nesting(timeline)


@pytest.mark.parametrize(
    ("timeline", "said"),
    [
        (make_spans(("a", 5, 4, None)), "'a' (span 0, 5 to 4 ns) ends before it begins"),
        (make_spans(("a", 0, 4, 0)), "stands before its parent, span 0"),
        (make_spans(("a", 2, 4, None), ("b", 1, 1, None)), "stands after operator 'a'"),
        (make_spans(("a", 2, 4, None), ("b", 1, 3, 0)), "begins before its parent operator 'a'"),
        (make_spans(("a", 0, 4, None), ("b", 2, 6, None)), "begins before operator 'a' (span 0, 0 to 4 ns) ends"),
        (make_spans(("a", 0, 4, None), ("b", 2, 6, 0)), "ends after its parent operator 'a'"),
        (make_spans(("a", 0, 9, None), ("b", 1, 4, 0), ("c", 3, 6, 0)), "begins before operator 'b'"),
        (make_spans(("a", 0, 4, None), ("b", 5, 6, None), ("c", 6, 6, 0)), "begins after its parent has ended"),
    ],
)
def test_spans_that_do_not_nest_are_refused(timeline: Timeline, said: str) -> None:
    with pytest.raises(FormatError) as caught:
        check_nesting(timeline)
    assert said in str(caught.value)
    assert "in timeline 't'" in str(caught.value)


def test_a_kernel_may_run_after_the_operator_that_launched_it_but_not_in_another_kernel() -> None:
    operator = Span(name="o", kind="operator", start_ns=0, end_ns=5)
    first = Span(name="k", kind="kernel", start_ns=4, end_ns=9, parent=0)
    check_nesting(Timeline(name="t", spans=(operator, first)))
    second = first.model_copy(update={"start_ns": 8, "end_ns": 12})
    with pytest.raises(FormatError, match="begins before kernel 'k'"):
        check_nesting(Timeline(name="t", spans=(operator, first, second)))
    elsewhere = second.model_copy(update={"track": "GPU 0 stream 7"})
    check_nesting(Timeline(name="t", spans=(operator, first, elsewhere)))


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": (note("x", 1, 2), note("x", 2, 2))},
        {"details": {"outputs": "none"}},
        {"details": {"ratio": float("nan")}},
    ],
)
def test_what_perfetto_could_not_show_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Span(name="s", kind="step", start_ns=0, end_ns=1, **fields)
