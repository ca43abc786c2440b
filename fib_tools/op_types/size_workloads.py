"""Workloads of made-up sizes, for a Definition of which no engine has shown any: those of its reference test."""

from __future__ import annotations

from collections.abc import Sequence

from fib_tools.errors import FormatError
from fib_tools.model.definition import Definition
from fib_tools.model.workload import InputSpec, RandomInput, ScalarInput, Workload, workload_uuid
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.sizes import SIZES, choose_test_axes

__all__ = ["describe_inputs", "make_size_workloads"]


def make_size_workloads(definition: Definition, sizes: Sequence[str] = SIZES) -> dict[str, Workload]:
    """Make a Workload of each size; one whose constraints cannot hold is left out, and so is one that says the same.

    Raises:
        FormatError: the Definition's constraints cannot hold at any length.
    """
    inputs = describe_inputs(definition)
    made: dict[str, Workload] = {}
    for size in sizes:
        try:
            axes = choose_test_axes(definition, size)
        except FormatError:
            continue
        uuid = workload_uuid(definition.name, axes, inputs)
        if uuid not in {each.uuid for each in made.values()}:
            made[size] = Workload(axes=axes, inputs=inputs, uuid=uuid, origin="synthetic")
    return made


def describe_inputs(definition: Definition) -> dict[str, InputSpec]:
    """Describe made-up inputs: tensors are random, by the op_type's rules; scalars have the value that those rules give."""
    if all(spec.shape is not None for spec in definition.inputs.values()):
        return {name: RandomInput() for name in definition.inputs}
    made = generate_inputs(definition, choose_axes(definition, {}))
    return {
        name: RandomInput() if spec.shape is not None else ScalarInput(value=made[name])
        for name, spec in definition.inputs.items()
    }
