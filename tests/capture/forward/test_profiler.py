from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fib_tools.capture.forward.profiler import Marker, read_events, run_profiler
from fib_tools.capture.forward.record import record_forward
from fib_tools.capture.forward.recorder import Recorder
from fib_tools.capture.forward.steps import watch_steps
from fib_tools.capture.timeline_kernels import ProfilerEvent, place_kernels
from fib_tools.errors import FormatError
from tiny_forward import make_model, make_prompt


def line(category: str, name: str, start: float, length: float, **arguments: Any) -> dict[str, Any]:
    named = {key.replace("_", " "): value for key, value in arguments.items()}
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "pid": 1, "tid": 7, "args": named}


MARK = line("user_annotation", "fib-tools clock 0", 1000.0, 2.0, External_id=1)
CUDA = [
    MARK,
    line("Trace", "PyTorch Profiler (0)", 1000.0, 99.0),
    line("cpu_op", "aten::mm", 1010.0, 20.0, External_id=3, Input_Dims=[[8, 8]]),
    line("cuda_runtime", "cudaLaunchKernel", 1012.0, 3.5, External_id=3, cbid=211, correlation=70),
    line("gpu_user_annotation", "fib-tools clock 0", 1000.0, 30.0, External_id=1),
    {
        **line("kernel", "nvjet_tst_64x8", 1016.125, 3.1, External_id=3, correlation=70, device=0, stream=7),
        "pid": 0,
    },
    line("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 1025.0, 1.0, correlation=71, device=1, stream=9, bytes=64),
    {"ph": "s", "id": 70, "cat": "ac2g", "name": "ac2g", "ts": 1012.0, "pid": 1, "tid": 7},
    {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "ts": 1012.0},
]
CUDA[5]["args"] |= {"grid": [8, 1, 1], "block": [128, 1, 1], "est. achieved occupancy %": 12}


def test_a_profile_of_cuda_is_read_onto_our_clock() -> None:
    markers = [Marker(name="fib-tools clock 0", after_ns=5_000_000, before_ns=5_000_400)]
    assert read_events({"traceEvents": CUDA}, markers) == (
        ProfilerEvent(role="operation", name="aten::mm", start_ns=5_010_200, end_ns=5_030_200, operation=3),
        ProfilerEvent(
            role="launch",
            name="cudaLaunchKernel",
            start_ns=5_012_200,
            end_ns=5_015_700,
            correlation=70,
            operation=3,
            details={"correlation": 70},
        ),
        ProfilerEvent(
            role="kernel",
            name="nvjet_tst_64x8",
            start_ns=5_016_325,
            end_ns=5_019_425,
            correlation=70,
            operation=3,
            stream=7,
            details={"grid": "[8, 1, 1]", "block": "[128, 1, 1]", "correlation": 70},
        ),
        ProfilerEvent(
            role="kernel",
            name="Memcpy HtoD (Pageable -> Device)",
            start_ns=5_025_200,
            end_ns=5_026_200,
            correlation=71,
            stream=9,
            device=1,
            details={"bytes": 64, "correlation": 71},
        ),
    )


def test_the_narrowest_of_all_marks_tells_how_the_clocks_differ() -> None:
    lines = [line("user_annotation", f"fib-tools clock {at}", 10.0 * at, 1.0) for at in range(3)]
    bounds = [(100, 9000), (10_000, 10_600), (19_000, 20_200)]
    markers = [
        Marker(name=f"fib-tools clock {at}", after_ns=after, before_ns=before)
        for at, (after, before) in enumerate(bounds)
    ]
    # less the starts of 0, 10,000 and 20,000: 100 .. 9000, 0 .. 600, -1000 .. 200
    event = line("cpu_op", "aten::mm", 50.0, 1.0)
    assert read_events({"traceEvents": [*lines, event]}, markers)[0].start_ns == 50_000 + 150


def test_without_a_mark_nobody_knows_the_clock() -> None:
    with pytest.raises(FormatError, match="none of our marks"):
        read_events({"traceEvents": CUDA[1:]}, [Marker(name="fib-tools clock 0", after_ns=0, before_ns=1)])


def test_operations_of_a_real_profile_lie_inside_the_steps_that_made_them() -> None:
    model, prompt = make_model("llama", attn_implementation="eager"), make_prompt((12, 8))
    record_forward(model, prompt, name="first")
    with run_profiler("llama.pt.trace.json", with_cuda=False) as profile:
        timeline = record_forward(model, prompt, name="llama")
    steps = [span for span in timeline.spans if span.kind == "step"]
    assert len(steps) > 100
    inside = 0
    for step in steps:
        name = "aten::" + str(step.details["op_type"]).split(".")[1]
        inside += any(
            event.name == name and step.start_ns <= event.start_ns and event.end_ns <= step.end_ns
            for event in profile.events
        )
    assert inside / len(steps) > 0.98, "the clocks agree to less than what a step takes"
    assert {event.role for event in profile.events} == {"operation"}
    assert place_kernels(timeline, profile.events) is timeline


def test_the_profile_is_one_that_tensorboard_takes() -> None:
    with run_profiler("tiny.pt.trace.json", with_cuda=False) as profile:
        torch.ones(3, 4) @ torch.ones(4, 5)
    document = json.loads(profile.document)
    assert document["schemaVersion"] == 1
    assert document["traceName"] == "tiny.pt.trace.json"
    (product,) = [each for each in document["traceEvents"] if each.get("name") == "aten::mm"]
    assert product["args"]["Input Dims"][:2] == [[3, 4], [4, 5]]
    assert any(each["name"] == "[memory]" for each in document["traceEvents"])


def test_a_step_lasts_until_the_device_is_done() -> None:
    recorder = Recorder()
    seen: list[int] = []
    recorder.wait = lambda: seen.append(len(recorder.drafts))
    with watch_steps(recorder):
        torch.ones(2) + torch.ones(2)
    assert [draft.name for draft in recorder.drafts] == ["ones", "ones", "add"]
    assert seen == [0, 1, 2], "each is waited for before it ends"
