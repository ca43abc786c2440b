"""Calls back to back, eager or replayed from a CUDA graph, which the judge times with its own clock."""

from __future__ import annotations

import math
from typing import Any

import torch

from fib_tools.evaluate._runner.calls import Caller
from fib_tools.evaluate._runner.workload import OpenWorkload

__all__ = ["Looper"]


class Looper:
    """Keeps the graph of the workload that was looped last."""

    def __init__(self, caller: Caller, gpu: Any) -> None:
        self._caller, self._gpu = caller, gpu
        self._key: tuple[int, int, int] | None = None
        self._sets: list[tuple[Any, Any]] = []
        self._outputs: list[Any] = []
        self._graph: Any = None

    def forget(self) -> None:
        """Give back what it keeps."""
        self._key, self._graph, self._sets, self._outputs = None, None, [], []

    def loop(self, workload: OpenWorkload, seed: int, *, sets: int, count: int, graph: bool) -> None:
        """Make `count` calls, or replays of a graph of `sets` calls, and wait for the device.

        The first time, that many sets of inputs are made, and the graph is captured.
        """
        self._prepare(workload, seed, sets)
        if graph:
            if self._graph is None:
                self._capture()
            for _ in range(count):
                self._graph.replay()
            self._gpu.synchronize()
            return
        for index in range(count):
            inputs, state = self._sets[index % len(self._sets)]
            self._outputs[0] = self._caller.call(inputs, self._outputs[1], state)
        if self._gpu is not None:
            self._gpu.synchronize()

    def _prepare(self, workload: OpenWorkload, seed: int, sets: int) -> None:
        if self._key == (id(workload), seed, sets):
            return
        self._graph, self._sets = None, []
        for index in range(sets):
            inputs = workload.make(seed + index)
            self._sets.append(
                (inputs, self._caller.plan(inputs, workload.plan.values) if self._caller.has_setup else {})
            )
        device = "cpu" if self._gpu is None else "cuda"
        outputs = {
            place.name: torch.empty(math.prod(place.shape) * place.dtype.itemsize, dtype=torch.uint8, device=device)
            .view(place.dtype)
            .view(place.shape)
            for place in workload.layout.outputs
        }
        self._outputs = [None, outputs]
        self._key = (id(workload), seed, sets)

    def _capture(self) -> None:
        """Capture one call on each set of inputs."""
        kept = []
        graph = torch.cuda.CUDAGraph()
        with self._gpu.capture(graph):
            for inputs, state in self._sets:
                kept.append(self._caller.call(inputs, self._outputs[1], state))
        self._outputs[0] = kept
        self._graph = graph
