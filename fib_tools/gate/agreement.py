"""Whether a Definition's reference computes what another function computes, found by running both in the sandbox.

>>> with open_sandbox() as sandbox:
...     compare_references(definition, canonical, sandbox=sandbox).agrees
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from fib_tools.errors import ChildMemoryError, FibError
from fib_tools.gate.constants import find_constants
from fib_tools.host.env import redact
from fib_tools.host.sandbox import Limits, Sandbox
from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition, TensorSpec
from fib_tools.model.naming import cut_name

__all__ = ["Agreement", "compare_function", "compare_references", "find_interface_differences", "may_be_same"]

_ENTRY = "fib_tools.gate._agreement_child:compare"
_BYTE_BUDGET = 16 << 20
_LIMITS = Limits(wall_seconds=120, memory_bytes=8 << 30)
"""Importing SGLang takes most of it."""
_SCALES = (1.0, 1e-3, 8.0)
"""Small inputs show an epsilon that inputs around 1 hide, large ones a limit."""
_REASON_LENGTH = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How a comparison ended."""

    agrees: bool
    reason: str | None = None
    """What differs: the first wrong element, with both values."""
    unavailable: str | None = None
    """Why the other function cannot run here; then nothing is known."""
    outputs: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By output: the difference that came nearest to what was allowed there, and what was allowed."""
    is_wide: bool = False
    """Both took inputs in float64, where only another formula makes a difference; else their own types were compared."""

    def describe(self) -> str:
        """Say how close the outputs are: `y differs by 0.0078, allowed 0.03 (inputs in float64)`."""
        parts = [
            f"{name} differs by {worst:.3g}, allowed {allowed:.3g}" for name, (worst, allowed) in self.outputs.items()
        ]
        return f"{'; '.join(parts)} (inputs in {'float64' if self.is_wide else 'the declared types only'})"


def compare_references(definition: Definition, other: Definition, *, sandbox: Sandbox) -> Agreement:
    """Run the references of two Definitions with one interface on the same inputs, at several scales."""
    return _run(definition, other.reference, "run", (), sandbox)


def compare_function(
    definition: Definition, source: str, function: str, *, modules: tuple[str, ...], sandbox: Sandbox
) -> Agreement:
    """Run a reference and a function of another source, which needs the modules, on the same inputs."""
    return _run(definition, source, function, modules, sandbox)


def _run(definition: Definition, source: str, function: str, modules: tuple[str, ...], sandbox: Sandbox) -> Agreement:
    payload = {
        "document": to_document(definition),
        "other": source,
        "function": function,
        "modules": list(modules),
        "seed": 1,
        "byte_budget": _BYTE_BUDGET,
        "scales": [1.0] if modules else list(_SCALES),
    }
    try:
        answer = sandbox.run(_ENTRY, payload, limits=_LIMITS)
    except ChildMemoryError as error:
        return Agreement(agrees=False, unavailable=str(error))
    except FibError as error:
        return Agreement(agrees=False, reason=str(error)[:_REASON_LENGTH])
    return Agreement(
        agrees=answer.get("agrees") is True,
        reason=_text(answer.get("reason")),
        unavailable=_text(answer.get("unavailable")),
        outputs=_measures(answer.get("outputs")),
        is_wide='"wide"' in json.dumps(answer.get("outputs")),
    )


def _text(value: Any) -> str | None:
    return redact(value.partition("\n")[0][:_REASON_LENGTH]) if isinstance(value, str) and value else None


def _measures(value: Any) -> dict[str, tuple[float, float]]:
    """Take what the child claims to have measured, as numbers."""
    found: dict[str, tuple[float, float]] = {}
    for name, item in value.items() if isinstance(value, dict) else ():
        if isinstance(item, dict) and isinstance(item.get("worst"), float) and isinstance(item.get("allowed"), float):
            found[str(name)] = (item["worst"], item["allowed"])
    return found


def find_interface_differences(definition: Definition, other: Definition) -> list[str]:
    """Say where two Definitions are not called alike: names, order, shapes and dtypes of inputs and outputs."""
    differences = []
    for kind in ("inputs", "outputs"):
        ours, theirs = getattr(definition, kind), getattr(other, kind)
        if list(ours) != list(theirs):
            differences.append(f"{kind} are {', '.join(ours)}; {other.name} has {', '.join(theirs)}")
            continue
        for name, spec in ours.items():
            left, right = _lengths(definition, spec), _lengths(other, theirs[name])
            if left != right:
                differences.append(f"{kind}.{name} is {_show(left)}; {other.name} has {_show(right)}")
    return differences


def may_be_same(definition: Definition, other: Definition) -> bool:
    """Tell whether two Definitions could be one kernel under two names: the same tensors in order, no other number.

    A trial run is too short to show a window or a cap, so a number that one names and the other has not sets them apart.
    """
    for kind in ("inputs", "outputs"):
        ours, theirs = getattr(definition, kind).values(), getattr(other, kind).values()
        if [_lengths(definition, spec) for spec in ours] != [_lengths(other, spec) for spec in theirs]:
            return False
    left, right = find_constants(definition.reference), find_constants(other.reference)
    if any(left[name] != right[name] for name in left.keys() & right.keys()):
        return False
    return _named_numbers(definition) <= _numbers(other) and _named_numbers(other) <= _numbers(definition)


def _named_numbers(definition: Definition) -> set[float]:
    return {part.number for part in cut_name(definition.name).parts if part.number is not None}


def _numbers(definition: Definition) -> set[float]:
    constants = find_constants(definition.reference).values()
    baked = {float(value) for value in constants if isinstance(value, (int, float))}
    return {*_named_numbers(definition), *definition.const_axes.values(), *baked}


def _lengths(definition: Definition, spec: TensorSpec) -> tuple[str, list[int | None] | None]:
    """A tensor without names: dtype, const lengths, and None for var ones."""
    shape = None if spec.shape is None else [definition.const_axes.get(axis) for axis in spec.shape]
    return spec.dtype.value, shape


def _show(tensor: tuple[str, list[int | None] | None]) -> str:
    dtype, shape = tensor
    return f"{dtype} {'scalar' if shape is None else [length or 'var' for length in shape]}"
