"""A call of a Solution as a confined process makes it again: built once, then made as often as one likes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fib_tools.evaluate._runner.build import build_solution
from fib_tools.evaluate._runner.caches import keep_caches_here
from fib_tools.evaluate._runner.calls import Caller
from fib_tools.evaluate._runner.workload import OpenWorkload, open_workload
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Solution

__all__ = ["Call", "open_described", "read_definition"]

_FOLDER = "solution"


class Call:
    """Builds the Solution in the current folder, and makes its inputs."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        keep_caches_here({})
        definition, solution = read_definition(payload), Solution.model_validate(payload["solution"])
        folder = Path.cwd() / _FOLDER
        folder.mkdir()
        passes = solution.spec.destination_passing_style
        built = build_solution(solution, folder, [*definition.inputs, *(definition.outputs if passes else ())])
        self._caller = Caller(definition, built, destination_passing=passes, device=payload["device"])
        workload = open_described(definition, payload)
        self._inputs = workload.make(payload["seed"])
        self._state = self._caller.plan(self._inputs, workload.plan.values) if self._caller.has_setup else {}
        self.memory = torch.zeros(workload.layout.slot_bytes, dtype=torch.uint8, device=payload["device"])
        """Where the outputs are once they were delivered, one after another."""
        self._places = workload.layout.view(self.memory, 0)
        self._outputs = {name: value.clone() for name, value in self._places.items()}
        self._result: Any = None

    def make(self) -> None:
        """Make the call."""
        self._result = self._caller.call(self._inputs, self._outputs, self._state)

    def deliver(self) -> None:
        """Copy its outputs to their places."""
        self._caller.deliver(self._result, self._inputs, self._outputs, self._places)


def read_definition(payload: Mapping[str, Any]) -> Definition:
    """Read what is called."""
    return Definition.model_validate(payload["definition"])


def open_described(definition: Definition, payload: Mapping[str, Any]) -> OpenWorkload:
    """Open the Workload that it is called on."""
    return open_workload(definition, payload["message"], device=payload["device"], root=Path(payload["dataset"]))
