"""Inputs for a trial run of any Definition: seeded, structurally valid, and no larger in memory than needed.

Index tensors are made by rule, since random integers are no page table: the op_type's rules first, then the stock
rules by input name, then by element type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.model.definition import Definition, DType
from fib_tools.op_types.input_request import InputRequest, fill_random
from fib_tools.op_types.registry import find_op_type
from fib_tools.op_types.rules import STOCK_RULES

__all__ = ["generate_inputs"]


def generate_inputs(
    definition: Definition, axes: Mapping[str, int], *, seed: int = 0, device: str = "cpu", byte_budget: int = 256 << 20
) -> dict[str, Any]:
    """Make every input of a Definition, in calling order.

    A floating tensor over `byte_budget` shares storage along its leading axes (stride 0), so that 384 experts of full
    size cost the memory of a few: shapes are real, contents repeat.
    """
    import torch

    op_type = find_op_type(definition.op_type)
    rules = {**STOCK_RULES, **(op_type.input_rules if op_type else {})}
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Any] = {}
    for name, spec in definition.inputs.items():
        request = InputRequest(
            definition=definition, axes=axes, name=name, spec=spec, made=made, generator=generator, device=device
        )
        rule = rules.get(name)
        made[name] = rule(request) if rule else _by_dtype(request, byte_budget)
    return made


def _by_dtype(request: InputRequest, byte_budget: int) -> Any:
    spec = request.spec
    if spec.shape is None:
        return {"b": False, "i": 1, "f": 1.0}[spec.dtype.value[0]]
    if spec.dtype is DType.BOOL:
        return request.integers(0, 2)
    if spec.dtype.value.startswith("int"):
        return request.integers(0, 2)
    return fill_random(request, byte_budget=byte_budget)
