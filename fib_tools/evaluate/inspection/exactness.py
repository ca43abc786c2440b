"""How far a Solution is from float64, beside the reference's own distance: for its author to see, never for a verdict.

One call of a Workload is made again, after the evaluation and apart from it, so that a benchmark takes no longer for it.
Where the reference cannot run in float64 the answer says so: nothing stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import Field

from fib_tools.evaluate.inspection.sample import Sample, Setting
from fib_tools.evaluate.judge.slots import SlotLayout
from fib_tools.host.sandbox import Limits, Sandbox
from fib_tools.model.base import Model
from fib_tools.model.definition import Definition, DType
from fib_tools.op_types.tolerance import Tolerance

__all__ = [
    "MOST_BYTES",
    "PRELOAD",
    "Exactness",
    "OutputExactness",
    "list_numbers",
    "measure_exactness",
]

PRELOAD = ("torch", "fib_tools.evaluate.inspection._exact_child")
MOST_BYTES = 16 << 20
"""Of a Workload's outputs: they pass between two processes as text."""
_CALL = "fib_tools.evaluate.inspection._exact_child:call_solution"
_COMPARE = "fib_tools.evaluate.inspection._exact_child:compare_with_exact"
_TOGETHER = 2
_PROBLEM_LENGTH = 240


class OutputExactness(Model):
    """One output; numbers are absolute."""

    dtype: str
    """What everything is rounded to, the float64 result too."""
    error: float
    """The Solution's largest error against float64."""
    reference_error: float
    """The reference's own."""
    bound: float
    """How far from the reference the value with the largest error may be."""


class Exactness(Model):
    """One call on typical values."""

    axes: dict[str, int]
    outputs: dict[str, OutputExactness] = Field(default_factory=dict)
    problem: str = ""
    """Why there are no figures."""


def list_numbers(definition: Definition, tolerances: Mapping[str, Tolerance]) -> dict[str, Tolerance]:
    """List the outputs that an error against float64 says something of: numbers that are compared value by value."""
    return {
        name: tolerance
        for name, tolerance in tolerances.items()
        if tolerance.is_by_value and _is_number(definition.outputs[name].dtype)
    }


def _is_number(dtype: DType) -> bool:
    return dtype is DType.BFLOAT16 or (dtype.value.startswith("float") and dtype is not DType.FLOAT4_E2M1)


def measure_exactness(sandbox: Sandbox, setting: Setting, samples: Iterable[Sample]) -> list[Exactness]:
    """Measure some samples, each in two processes of the sandbox: the Solution's, then the comparison's."""
    definition = setting.definition
    bounds = {name: asdict(tolerance) for name, tolerance in list_numbers(definition, setting.tolerances).items()}
    payloads = [{**setting.describe(sample), "bounds": bounds} for sample in samples]
    return list(_measure(sandbox, definition, payloads, setting.limits)) if bounds else []


def _measure(
    sandbox: Sandbox, definition: Definition, payloads: list[dict[str, Any]], limits: Limits
) -> Iterator[Exactness]:
    fits = [SlotLayout.of(definition, payload["message"]["axes"]).slot_bytes <= MOST_BYTES for payload in payloads]
    calls = _run(sandbox, _CALL, [each if fit else None for each, fit in zip(payloads, fits, strict=True)], limits)
    second = [
        {**payload, "outputs": str(answer.get("outputs"))} if isinstance(answer, dict) else None
        for payload, answer in zip(payloads, calls, strict=True)
    ]
    compared = _run(sandbox, _COMPARE, second, limits)
    for payload, call, comparison in zip(payloads, calls, compared, strict=True):
        axes = payload["message"]["axes"]
        if call is None:
            problem = f"its outputs have more than {MOST_BYTES >> 20} MB"
        elif isinstance(call, str):
            problem = f"its call failed when it was made again: {call}"
        elif isinstance(comparison, str):
            problem = f"the reference cannot be compared with float64: {comparison}"
        else:
            yield Exactness(axes=axes, outputs=comparison["outputs"] if comparison else {})
            continue
        yield Exactness(axes=axes, problem=problem[:_PROBLEM_LENGTH])


def _run(
    sandbox: Sandbox, entry: str, payloads: list[dict[str, Any] | None], limits: Limits
) -> list[dict[str, Any] | str | None]:
    """Run what there is to run: answers, or why there is none, in order."""
    chosen = [(place, payload) for place, payload in enumerate(payloads) if payload is not None]
    answers: list[dict[str, Any] | str | None] = [None] * len(payloads)
    for outcome in sandbox.run_many(entry, [payload for _, payload in chosen], jobs=_TOGETHER, limits=limits):
        said = outcome.value if outcome.error is None else outcome.error.what
        answers[chosen[outcome.index][0]] = said
    return answers
