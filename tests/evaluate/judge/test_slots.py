from __future__ import annotations

import mmap
import os
import socket

import torch

from fib_tools.evaluate.judge.arena import Arena
from fib_tools.evaluate.judge.channel import Channel
from fib_tools.evaluate.judge.slots import SlotLayout
from fib_tools.model.definition import AxisConst, AxisVar, Definition, DType, TensorSpec

DEFINITION = Definition(
    name="three",
    op_type="test",
    axes={"rows": AxisVar(), "width": AxisConst(value=3)},
    inputs={"x": TensorSpec(shape=["rows", "width"], dtype=DType.BFLOAT16)},
    outputs={
        "y": TensorSpec(shape=["rows", "width"], dtype=DType.BFLOAT16),
        "total": TensorSpec(shape=None, dtype=DType.FLOAT32),
        "ids": TensorSpec(shape=["rows"], dtype=DType.INT64),
    },
    reference="def run(x): pass\n",
)


def test_outputs_lie_apart_and_aligned_as_an_allocator_aligns() -> None:
    layout = SlotLayout.of(DEFINITION, {"rows": 5})
    assert [(place.name, place.shape) for place in layout.outputs] == [("y", (5, 3)), ("total", ()), ("ids", (5,))]
    assert all(place.offset % 512 == 0 for place in layout.outputs)
    assert layout.slot_bytes == 3 * 512


def test_a_slot_and_the_stack_of_all_are_views_of_the_same_bytes() -> None:
    layout = SlotLayout.of(DEFINITION, {"rows": 2})
    arena = torch.zeros(4 * layout.slot_bytes, dtype=torch.uint8)
    for slot in range(4):
        views = layout.view(arena, slot)
        views["y"].fill_(slot)
        views["total"].fill_(10 * slot)
        views["ids"].copy_(torch.tensor([slot, -slot]))
    stacked = layout.stack(arena, 4)
    assert {name: tuple(value.shape) for name, value in stacked.items()} == {
        "y": (4, 2, 3),
        "total": (4,),
        "ids": (4, 2),
    }
    assert stacked["y"][:, 0, 0].tolist() == [0, 1, 2, 3]
    assert stacked["total"].tolist() == [0, 10, 20, 30]
    assert stacked["ids"].tolist() == [[0, 0], [1, -1], [2, -2], [3, -3]]


def test_an_empty_workload_has_slots_too() -> None:
    layout = SlotLayout.of(DEFINITION, {"rows": 0})
    assert layout.stack(torch.zeros(2 * layout.slot_bytes, dtype=torch.uint8), 2)["y"].shape == (2, 0, 3)


def test_two_poisons_in_turn_tell_an_unwritten_value_from_one_that_looks_like_it() -> None:
    arena = Arena(4096, "cpu")
    first, second = arena.poison(4096), arena.poison(4096)
    assert first != second
    assert arena.memory[:4096].eq(second).all()
    assert arena.memory[:2].view(torch.bfloat16).isnan().any() or second == 0x7F
    arena.close()


def test_a_runner_maps_the_very_memory_that_the_judge_reads() -> None:
    arena = Arena(4096, "cpu")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Channel(ours).send(*arena.offer())
        receiver = Channel(theirs, takes_files=True)
        message = receiver.receive(5)
        with mmap.mmap(receiver.descriptors[0], message["bytes"]) as mapped:
            mapped[:3] = b"abc"
            assert bytes(arena.memory[:3].tolist()) == b"abc"
        os.close(receiver.descriptors[0])
    arena.close()
