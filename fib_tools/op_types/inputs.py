"""Inputs of any Definition: seeded and structurally valid, for a trial run on a CPU or fresh for each timed call.

Index tensors are made by rule, since random integers are no page table: the op_type's rules first, then the stock
rules by input name, then by element type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fib_tools.errors import RequestError
from fib_tools.model.definition import Definition, DType, TensorSpec
from fib_tools.op_types.base import InputRule, OpType
from fib_tools.op_types.distribution import Distribution
from fib_tools.op_types.input_plan import InputMaker, InputPlan, copy_elsewhere, perturb_elsewhere
from fib_tools.op_types.input_request import BYTE_BUDGET, InputRequest, torch_dtype
from fib_tools.op_types.registry import find_op_type
from fib_tools.op_types.rules import STOCK_RULES, Plain

__all__ = [
    "Distribution",
    "InputPlan",
    "count_input_bytes",
    "find_values",
    "generate_inputs",
    "list_distributions",
    "plan_inputs",
]

_FLOATS = frozenset({DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16})
_FP8 = frozenset({DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2})
_NUMBERS = _FLOATS | _FP8 | {DType.FLOAT4_E2M1, DType.INT8}
"""Element types whose content is free; the schema has no uint8, so bytes of int8 are packed numbers."""


def generate_inputs(
    definition: Definition,
    axes: Mapping[str, int],
    *,
    seed: int = 0,
    device: str = "cpu",
    byte_budget: int = BYTE_BUDGET,
) -> dict[str, Any]:
    """Make every input of a Definition for a trial run, in calling order.

    A floating tensor over `byte_budget` shares storage along its leading axes (stride 0), so that 384 experts of full
    size cost the memory of a few: shapes are real, contents repeat.
    """
    import torch

    rules = _find_rules(definition)
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Any] = {}
    for name, spec in definition.inputs.items():
        request = InputRequest(
            definition=definition,
            axes=axes,
            name=name,
            spec=spec,
            made=made,
            generator=generator,
            device=device,
            byte_budget=BYTE_BUDGET if name in rules else byte_budget,
        )
        made[name] = rules.get(name, _make_by_type)(request)
    return made


def plan_inputs(  # noqa: PLR0913  # what a workload says, and how it is to be drawn
    definition: Definition,
    axes: Mapping[str, int],
    *,
    seed: int,
    device: str,
    fixed: Mapping[str, Any] | None = None,
    distribution: Distribution | str = Distribution.TYPICAL,
    byte_budget: int = BYTE_BUDGET,
) -> InputPlan:
    """Prepare to make all inputs of a workload again and again, on a device, with new values for each call.

    Structure (scalars, booleans, integers that are no packed numbers) is made here from `seed`, by the rules of a
    trial. `fixed` has what the workload gives, scalars and tensors, by input name; `axes` every length, const ones too.
    On a CPU a tensor over `byte_budget` shares storage along its leading axes; on a GPU nothing does.

    Raises:
        RequestError: when `fixed` has what is no input, or a tensor of another shape or type, or the axes do not fit.
    """
    import torch

    given = dict(fixed or {})
    _check_fixed(definition, axes, given)
    free = find_values(definition)
    rules = {name: _find_rules(definition).get(name, _make_by_type) for name in definition.inputs}
    generator = torch.Generator(device=device)
    draft = InputRequest(
        definition=definition,
        axes=axes,
        name="",
        spec=TensorSpec(shape=None, dtype=DType.FLOAT32),
        made=_make_structure(definition, axes, {name: rules[name] for name in rules if name not in free}, given, seed),
        generator=generator,
        device=device,
        fresh=True,
        byte_budget=byte_budget if generator.device.type == "cpu" else None,
    )
    plain = frozenset(_list_plain(definition, Distribution(distribution)))
    makers: dict[str, InputMaker] = {}
    for name, spec in definition.inputs.items():
        if name in free and name not in given:
            wanted = Distribution(distribution) if name in plain else Distribution.TYPICAL
            makers[name] = _bind(rules[name], replace(draft, name=name, spec=spec, distribution=wanted))
        elif spec.shape is not None and spec.dtype in _FLOATS | _FP8:
            makers[name] = perturb_elsewhere(given[name], device)
        else:
            makers[name] = copy_elsewhere(draft.made[name], device)
    return InputPlan(makers=makers, generator=generator, values=free)


def count_input_bytes(definition: Definition, axes: Mapping[str, int]) -> int:
    """Count the bytes of a call's tensors, where nothing shares storage; `axes` may leave out the const ones."""
    lengths = {**axes, **definition.const_axes}
    return sum(
        math.prod(lengths[axis] for axis in spec.shape) * torch_dtype(spec.dtype).itemsize
        for spec in definition.inputs.values()
        if spec.shape is not None
    )


def list_distributions(definition: Definition) -> tuple[Distribution, ...]:
    """List the distributions that make a difference for a Definition, `typical` first."""
    return tuple(each for each in Distribution if each is Distribution.TYPICAL or _list_plain(definition, each))


def _find_rules(definition: Definition) -> dict[str, InputRule]:
    own = find_op_type(definition.op_type)
    return {**STOCK_RULES, **(own.input_rules if own else {})}


def find_values(definition: Definition) -> frozenset[str]:
    """Find the inputs whose content is free."""
    own = find_op_type(definition.op_type)
    return frozenset(name for name, spec in definition.inputs.items() if _is_value(name, spec, own))


def _is_value(name: str, spec: TensorSpec, own: OpType | None) -> bool:
    if spec.shape is None:
        return False
    return spec.dtype in _NUMBERS or (own is not None and name in own.packed)


def _list_plain(definition: Definition, distribution: Distribution) -> list[str]:
    """List the inputs that a distribution is for: random activations of floats, with a var axis, by no rule of their own."""
    rules, own = _find_rules(definition), find_op_type(definition.op_type)
    spared = own.typical if own else frozenset()
    if own and distribution is Distribution.OUTLIERS:
        spared |= own.without_outliers
    var = frozenset(definition.var_axes)
    return [
        name
        for name, spec in definition.inputs.items()
        if spec.dtype in _FLOATS
        and var & set(spec.shape or ())
        and isinstance(rules.get(name, Plain()), Plain)
        and name not in spared
    ]


def _make_structure(
    definition: Definition, axes: Mapping[str, int], rules: Mapping[str, InputRule], given: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Make what is no value, on the CPU, where rules look into one another's tensors; what is given comes as it is."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Any] = {}
    for name, spec in definition.inputs.items():
        if name in given:
            made[name] = given[name].cpu() if isinstance(given[name], torch.Tensor) else given[name]
        elif name in rules:
            request = InputRequest(
                definition=definition, axes=axes, name=name, spec=spec, made=made, generator=generator
            )
            made[name] = rules[name](request)
    return made


def _check_fixed(definition: Definition, axes: Mapping[str, int], fixed: Mapping[str, Any]) -> None:
    import torch

    for name, value in fixed.items():
        spec = definition.inputs.get(name)
        if spec is None:
            raise RequestError(f"{name!r} is no input", where=definition.name)
        if (spec.shape is None) == isinstance(value, torch.Tensor):
            kind = "a tensor" if spec.shape is not None else "a scalar"
            raise RequestError(f"{name!r} is {kind}, and {type(value).__name__} is given", where=definition.name)
        if spec.shape is None:
            continue
        wanted = (tuple(axes[axis] for axis in spec.shape), torch_dtype(spec.dtype))
        if (tuple(value.shape), value.dtype) != wanted:
            got = f"{tuple(value.shape)} of {value.dtype}"
            raise RequestError(f"{name!r} is {got}, not {wanted[0]} of {wanted[1]}", where=definition.name)


def _bind(rule: InputRule, request: InputRequest) -> InputMaker:
    def make(seed: int) -> Any:
        del seed
        return rule(request)

    return make


def _make_by_type(request: InputRequest) -> Any:
    spec = request.spec
    if spec.shape is None:
        return {"b": False, "i": 1, "f": 1.0}[spec.dtype.value[0]]
    if spec.dtype is DType.BOOL or spec.dtype.value.startswith("int"):
        return request.integers(0, 2)
    return request.normal()
