"""Calls in a CUDA graph: captured once, replayed on inputs that change between replays, which the L2 does not hold.

Each call has inputs and outputs of its own, so that after one flush of the L2 a few small calls find theirs cold in turn;
in an order that no call can know, so that none fetches for the next. What a Solution keeps for itself is warm for them, as
for a model's layers. A second graph holds the flushes alone: the difference of both is the calls' time, between events,
without a host.
CUPTI is off meanwhile: with its records of a graph's nodes on, replays failed at random on one H200 that several
processes shared (CUDA 13.0, driver 580.159.04).
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fib_tools.evaluate._runner.calls import Caller
from fib_tools.evaluate._runner.gpu import Gpu
from fib_tools.evaluate._runner.workload import OpenWorkload

__all__ = ["NotCapturedError", "Replays"]

_POISON = 0x7F
_LARGE_BYTES = 64 << 20
"""Of the inputs and outputs of one call."""
_AHEAD_US = 300.0
"""The device is kept busy while the host launches the first graphs, so that it never waits for one."""
_FLUSHES_EVERY = 4
"""Replays of the calls for each of the flushes, which take the same time always."""
_L2_SHARE = 4
"""Calls behind one flush touch at most this part of the L2: more would push out what the flush left to be written, whose
writing belongs to a cold call."""


class NotCapturedError(Exception):
    """The call cannot be captured: it waits for the device, or does what a graph cannot hold."""


@dataclass(kw_only=True)
class _Set:
    """The inputs and outputs of one call of the graph."""

    inputs: dict[str, Any]
    outputs: dict[str, torch.Tensor]
    """Its own; what is in them is copied to the slot after the replays."""
    places: Mapping[str, torch.Tensor]
    state: dict[str, Any]
    result: Any = None

    @property
    def bytes(self) -> int:
        """How much a call may read and write, besides what it makes for itself."""
        return sum(value.nbytes for value in (*self.inputs.values(), *self.places.values()) if _is_tensor(value))


class Replays:
    """The graphs of one workload."""

    def __init__(self, caller: Caller, gpu: Gpu, workload: OpenWorkload, *, groups: bool) -> None:
        """With `groups`, several small calls follow one flush; a call that works for another is seen by other means."""
        self._caller, self._gpu, self._workload, self._groups = caller, gpu, workload, groups
        self._sets: list[_Set] = []
        self._calls: Any = None
        self._flushes: Any = None
        self._elapsed = torch.cuda.Event.elapsed_time
        self.flushes = 0
        """In each replay."""

    def capture(self, arena: torch.Tensor, seeds: list[int], slots: list[int]) -> None:
        """Capture a call for each slot, and replay once, since the first launch of a graph is slow.

        Raises:
            NotCapturedError: a graph cannot hold the call.
        """
        for seed, slot in zip(seeds, slots, strict=True):
            inputs = dict(self._workload.make(seed))
            state = self._caller.plan(inputs, self._workload.plan.values) if self._caller.has_setup else {}
            places = self._workload.layout.view(arena, slot)
            outputs = {name: value.clone() for name, value in places.items()}
            self._sets.append(_Set(inputs=inputs, outputs=outputs, places=places, state=state))
        if self._sets[0].bytes > _LARGE_BYTES:
            torch.cuda.empty_cache()  # what other workloads left would be missed
        self._gpu.synchronize()
        self._calls = torch.cuda.CUDAGraph()
        together = max(1, self._gpu.l2_bytes // _L2_SHARE // max(1, self._sets[0].bytes)) if self._groups else 1
        shuffled = secrets.SystemRandom().sample(self._sets, len(self._sets))
        try:
            with self._gpu.capture(self._calls):
                for number, each in enumerate(shuffled):
                    if number % together == 0:
                        self._gpu.write_over_cache()
                    each.result = self._caller.call(each.inputs, each.outputs, each.state)
        except RuntimeError as error:
            raise NotCapturedError(str(error)) from error
        self.flushes = -(-len(self._sets) // together)
        self._flushes = self._gpu.capture_flushes(self.flushes)
        self._calls.replay()
        self._gpu.synchronize()

    def refresh(self, seeds: list[int]) -> None:
        """Give every set new contents, at the addresses that the graph knows."""
        for each, seed in zip(self._sets, seeds, strict=True):
            for name, value in self._workload.make(seed).items():
                if name in self._workload.plan.values:
                    each.inputs[name].copy_(value)

    def replay(self, times: int) -> list[float]:
        """Replay, deliver what was returned, and give the milliseconds of a call in the mean of each replay."""
        self._gpu.synchronize()
        self._gpu.reset_persisting_lines()
        calls, flushes = [], []
        self._gpu.spin(_AHEAD_US)
        for number in range(times):
            calls.append(self._time(self._calls))
            if number % _FLUSHES_EVERY == 0:
                flushes.append(self._time(self._flushes))
        self._gpu.synchronize()
        self._deliver()
        flush = statistics.median(self._elapsed(*pair) for pair in flushes)
        return [max(0.0, self._elapsed(*pair) - flush) / len(self._sets) for pair in calls]

    def _time(self, graph: Any) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        first, second = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        second.record()
        return first, second

    def _deliver(self) -> None:
        """Copy what was made to the slots; what a graph's own memory keeps must not be an answer of the next replay."""
        for each in self._sets:
            self._caller.deliver(each.result, each.inputs, each.outputs, each.places)
        made = [value for each in self._sets for value in (*each.outputs.values(), *_tensors(each.result))]
        for value in made:
            if value.numel():
                value.view(-1).view(torch.uint8).fill_(_POISON)
        self._gpu.synchronize()


def _tensors(result: Any) -> list[torch.Tensor]:
    values = result.values() if isinstance(result, dict) else result if isinstance(result, (tuple, list)) else [result]
    return [value for value in values if _is_tensor(value) and value.is_contiguous()]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
