"""One call that is made again: what is called, on what, and what confines it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fib_tools.evaluate.judge.runner import limit_runner
from fib_tools.evaluate.judge.scene import stage
from fib_tools.host.sandbox import Limits
from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Solution
from fib_tools.model.workload import Workload
from fib_tools.op_types.tolerance import Tolerance

__all__ = ["Sample", "Setting"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A Solution on a Workload, with the inputs that the master seed of an evaluation gave it first."""

    solution: Solution
    workload: Workload
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What samples have in common."""

    definition: Definition
    tolerances: Mapping[str, Tolerance]
    device: str
    dataset: Path
    """Where blobs lie."""
    seconds: float
    """For a call, what it compiles included."""

    @property
    def limits(self) -> Limits:
        """What the process that makes a call may use: as much as a runner of the evaluation."""
        return limit_runner(device=self.device, seconds=self.seconds)

    def describe(self, sample: Sample) -> dict[str, Any]:
        """Describe a call to the process that makes it."""
        batch = stage(self.definition, sample.workload, master=sample.seed, calls=1).checks[0]
        return {
            "definition": to_document(self.definition),
            "solution": to_document(sample.solution),
            "message": dict(batch.staging.message),
            "seed": batch.seeds[0],
            "device": self.device,
            "dataset": str(self.dataset),
        }
