"""One Workload as the judge stages it: seeds that only the judge knows, and a slot for the outputs of each call."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fib_tools.evaluate.judge.slots import SlotLayout
from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition
from fib_tools.model.workload import SafetensorsInput, Workload
from fib_tools.op_types.distribution import Distribution
from fib_tools.op_types.held_out import choose_held_out_axes
from fib_tools.op_types.inputs import list_distributions

__all__ = ["Batch", "Scene", "Staging", "call", "derive_seed", "describe_first_call", "stage"]

_TYPICAL_CHECKS = 2
"""Calls before the timed ones that are compared: the first may compile, the second is as all others."""
_HELD_OUT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Staging:
    """What can be opened under a name: lengths, given inputs, and a distribution of the values."""

    name: str
    message: Mapping[str, Any]
    layout: SlotLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Calls that are made together, each with its seed and its slot."""

    staging: Staging
    seeds: tuple[int, ...]
    slots: tuple[int, ...]

    def measure(self) -> dict[str, Any]:
        """Write the command to make the calls, and to time each."""
        return {"do": "measure", "name": self.staging.name, "seeds": self.seeds, "slots": self.slots}

    def part(self, start: int, stop: int) -> Batch:
        """Take some of the calls."""
        return Batch(staging=self.staging, seeds=self.seeds[start:stop], slots=self.slots[start:stop])

    def anew(self, number: int) -> Batch:
        """Make the same calls on other contents."""
        return replace(self, seeds=tuple(derive_seed(seed, "anew", number) for seed in self.seeds))


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """All calls that a Workload is good for."""

    typical: Staging
    checks: tuple[Batch, ...]
    """Compared before anything is timed: typical values twice, then other distributions."""
    timed: Batch
    held_out: tuple[Batch, ...]
    """Other lengths of the axes, compared by themselves."""

    @property
    def slots(self) -> int:
        """How many slots the checks and the timed calls need."""
        return max(self.timed.slots) + 1


def call(*batches: Batch) -> dict[str, Any]:
    """Write the command to make calls that nobody times."""
    parts = [{"name": each.staging.name, "seeds": each.seeds, "slots": each.slots} for each in batches]
    return {"do": "call", "batches": parts}


def derive_seed(master: int, *parts: object) -> int:
    """Derive a seed of 62 bits; without the master seed nobody can tell it."""
    text = ":".join(map(str, (master, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 2


def describe_first_call(workload: Workload) -> dict[str, Any]:
    """Describe a workload to a runner that makes a call nobody compares, with a seed of its own."""
    return {
        "axes": dict(workload.axes),
        "inputs": to_document(workload.inputs),
        "seed": secrets.randbits(62),
        "distribution": Distribution.TYPICAL.value,
    }


def stage(definition: Definition, workload: Workload, *, master: int, calls: int) -> Scene:
    """Stage a Workload for so many timed calls."""
    inputs = to_document(workload.inputs)
    structure = derive_seed(master, workload.uuid, "structure")

    def staging(name: str, axes: Mapping[str, int], given: Mapping[str, Any], distribution: str) -> Staging:
        message = {"axes": dict(axes), "inputs": dict(given), "seed": structure, "distribution": distribution}
        return Staging(
            name=f"{workload.uuid}/{structure}/{name}", message=message, layout=SlotLayout.of(definition, axes)
        )

    def batch(at: Staging, slots: Sequence[int]) -> Batch:
        seeds = tuple(derive_seed(master, workload.uuid, at.name, slot) for slot in slots)
        return Batch(staging=at, seeds=seeds, slots=tuple(slots))

    typical = staging("typical", workload.axes, inputs, Distribution.TYPICAL.value)
    checks = [batch(typical, range(_TYPICAL_CHECKS))]
    for distribution in list_distributions(definition):
        if distribution is not Distribution.TYPICAL:
            at = staging(distribution.value, workload.axes, inputs, distribution.value)
            checks.append(batch(at, [_TYPICAL_CHECKS + len(checks) - 1]))
    first = checks[-1].slots[-1] + 1
    held_out = []
    if definition.var_axes and not _has_blobs(workload):
        scalars = {name: spec for name, spec in inputs.items() if spec["type"] == "scalar"}
        for number in range(_HELD_OUT):
            axes = choose_held_out_axes(definition, workload.axes, derive_seed(master, workload.uuid, "axes", number))
            if axes and axes != workload.axes:
                held_out.append(batch(staging(f"held-out {number}", axes, scalars, Distribution.TYPICAL.value), [0]))
    return Scene(
        typical=typical,
        checks=tuple(checks),
        timed=batch(typical, range(first, first + calls)),
        held_out=tuple(held_out),
    )


def _has_blobs(workload: Workload) -> bool:
    return any(isinstance(spec, SafetensorsInput) for spec in workload.inputs.values())
