"""A workload as a runner has it open: how its inputs are made, and where its outputs go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fib_tools.evaluate.judge.given import load_given_inputs
from fib_tools.evaluate.judge.slots import SlotLayout
from fib_tools.model.definition import Definition
from fib_tools.op_types.inputs import Distribution, InputPlan, plan_inputs

__all__ = ["OpenWorkload", "open_workload"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenWorkload:
    """One workload, or another set of lengths or another distribution of it."""

    plan: InputPlan
    layout: SlotLayout

    def make(self, seed: int) -> Mapping[str, Any]:
        """Make the inputs of one call, in calling order."""
        return self.plan.make(seed)


def open_workload(definition: Definition, message: Mapping[str, Any], *, device: str, root: Path) -> OpenWorkload:
    """Open what a message of the judge describes: `axes`, `inputs`, `seed` of the structure and `distribution`."""
    axes = {**message["axes"], **definition.const_axes}
    plan = plan_inputs(
        definition,
        axes,
        seed=message["seed"],
        device=device,
        fixed=load_given_inputs(message["inputs"], device=device, root=root),
        distribution=Distribution(message["distribution"]),
    )
    return OpenWorkload(plan=plan, layout=SlotLayout.of(definition, axes))
