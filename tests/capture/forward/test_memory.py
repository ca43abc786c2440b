from __future__ import annotations

from typing import Any

import pytest
import torch

from fib_tools.capture.forward.memory import ACTIVATIONS, MEMORY, LiveMemory
from fib_tools.capture.forward.record import record_forward
from fib_tools.capture.forward.recorder import Recorder
from fib_tools.capture.forward.steps import watch_steps
from fib_tools.capture.timeline import Counter, Timeline
from tiny_forward import make_model, make_prompt


def list_values(memory: LiveMemory) -> list[int]:
    total, _ = memory.stop()
    assert [moment for moment, _ in total.points] == sorted(moment for moment, _ in total.points)
    return [int(value) for _, value in total.points]


def test_a_storage_counts_once_and_until_its_last_view_goes() -> None:
    memory = LiveMemory()
    memory.start([], [])
    whole = torch.zeros(10, dtype=torch.float32)
    memory.add([whole, whole.view(2, 5)])
    part = whole[3:]
    memory.add([part])
    del whole
    other = torch.zeros(3, dtype=torch.bfloat16)
    memory.add([other])
    del part, other
    assert list_values(memory) == [0, 40, 46, 6, 0]


def test_weights_are_what_they_use_of_a_storage_and_are_not_in_the_second_counter() -> None:
    file = torch.zeros(1000, dtype=torch.uint8)
    weights = [file[:100], file[100:300], file[100:300].view(2, 100), torch.zeros(5, dtype=torch.uint8)]
    memory = LiveMemory()
    ids = torch.zeros(2, dtype=torch.int64)
    memory.start(weights, [ids])
    memory.add([file[500:]])
    output = torch.zeros(7, dtype=torch.uint8)
    memory.add([output])
    total, rest = memory.stop()
    assert [value for _, value in total.points][-2:] == [305 + 16, 305 + 16 + 7]
    assert [value for _, value in rest.points][-2:] == [16, 16 + 7]
    assert (total.name, rest.name, total.unit) == (MEMORY, ACTIVATIONS, "bytes")


def test_tensors_that_hold_nothing_are_told_apart() -> None:
    memory = LiveMemory()
    memory.start([], [])
    empty = [torch.zeros(0), torch.zeros(0)]
    memory.add(empty)
    empty.clear()
    assert set(list_values(memory)) == {0}


def test_nothing_is_noted_after_the_end() -> None:
    memory = LiveMemory()
    tensor = torch.zeros(4)
    memory.start([], [tensor])
    before = list_values(memory)
    del tensor
    assert list_values(memory) == before == [16, 16]


def find(timeline: Timeline, name: str) -> Counter:
    (counter,) = [counter for counter in timeline.counters if counter.name == name]
    return counter


def prepare(kind: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Make a model that has made what it makes once and keeps."""
    model, prompt = make_model(kind, attn_implementation="eager"), make_prompt((120, 80))
    record_forward(model, prompt, name="first")
    return model, prompt


@pytest.mark.parametrize("layers", [None, {1}, set()])
def test_a_forward_begins_and_ends_with_weights_and_inputs(layers: set[int] | None) -> None:
    model, prompt = prepare("llama")
    timeline = record_forward(model, prompt, name="llama", layers=layers)
    weights = sum(each.numel() * each.element_size() for each in {*model.parameters(), *model.buffers()})
    values = [value for _, value in find(timeline, MEMORY).points]
    given = 2 * 2 * 120 * 8
    assert (values[0], values[-1]) == (weights + given, weights + given)
    # scores of four heads in float32, of one layer at least, are more than all the weights
    assert max(values) > weights + 2 * 4 * 120 * 120 * 4


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "deepseek_v3"])
def test_the_most_that_lives_is_what_torchs_allocator_gave_out(kind: str) -> None:
    model, prompt = prepare(kind)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        timeline = record_forward(model, prompt, name=kind)
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    given = now = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            given = max(given, now)
    values = [int(value) for _, value in find(timeline, ACTIVATIONS).points]
    assert 0.98 * given <= max(values) - values[0] <= given, "less only what an operation takes for itself"


def test_each_step_that_returns_memory_raises_it_by_as_much() -> None:
    timeline = record_forward(*prepare("llama"), name="llama")
    points = find(timeline, MEMORY).points
    steps = [span for span in timeline.spans if span.kind == "step" and span.name == "gate_times_up"]
    assert steps
    for step in steps:
        before = next(value for moment, value in reversed(points) if moment <= step.end_ns)
        after = next(value for moment, value in points if moment > step.end_ns)
        assert after - before == step.outputs[0].bytes == 2 * 120 * 128 * 2


def test_what_describes_a_call_is_no_memory_of_the_model() -> None:
    recorder = Recorder()
    recorder.memory.start([], [])
    with watch_steps(recorder):
        kept = [recorder.call_inside(torch.zeros, 5)]
        recorder.is_on = False
        kept.append(torch.zeros(3))
    assert list_values(recorder.memory) == [0, 12]
