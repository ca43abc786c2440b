r"""A Definition: what a kernel computes, over which axes, and the reference that says so exactly.

{"name": "rmsnorm_h7168", "op_type": "rmsnorm",
 "axes": {"batch_size": {"type": "var"}, "hidden_size": {"type": "const", "value": 7168}},
 "inputs": {"hidden_states": {"shape": ["batch_size", "hidden_size"], "dtype": "bfloat16"}, ...},
 "outputs": {...}, "reference": "import torch\n\ndef run(hidden_states, weight): ..."}
"""

from __future__ import annotations

import ast
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fib_tools.model.base import Model, NonEmpty, NonNegative

__all__ = ["Axis", "AxisConst", "AxisVar", "DType", "Definition", "TensorSpec", "infer_axis_type"]


class DType(str, Enum):
    """The element types that the published schema knows; there is no uint8 and no uint32."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT8_E5M2 = "float8_e5m2"
    FLOAT4_E2M1 = "float4_e2m1"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    BOOL = "bool"


class AxisConst(Model):
    """An axis whose length is part of the kernel."""

    type: Literal["const"] = "const"
    value: NonNegative
    """The length of the axis, in elements."""
    description: str | None = None


class AxisVar(Model):
    """An axis whose length each workload chooses."""

    type: Literal["var"] = "var"
    description: str | None = None


def infer_axis_type(data: Any) -> Any:
    """Give an axis its `type` where another writer left it out: with a value it is const, without it is var."""
    if isinstance(data, dict) and "type" not in data:
        return {"type": "const" if "value" in data else "var", **data}
    return data


Axis = Annotated[
    Annotated[AxisConst | AxisVar, Field(discriminator="type")],
    BeforeValidator(infer_axis_type),
]


class TensorSpec(Model):
    """Shape and element type of one input or output."""

    shape: list[NonEmpty] | None
    """Axis names, outermost first; null is a scalar, an empty list a 0-d tensor."""
    dtype: DType
    description: str | None = None


class Definition(Model):
    """What a kernel computes: axes, inputs and outputs in calling order, and an executable reference."""

    name: NonEmpty
    description: str | None = None
    op_type: NonEmpty
    """The folder under `definitions/`, such as `gqa_paged`."""
    tags: list[NonEmpty] = Field(default_factory=list)
    axes: dict[NonEmpty, Axis]
    constraints: list[NonEmpty] = Field(default_factory=list)
    """Expressions over the axes that hold for every workload, such as `len_indptr == batch_size + 1`."""
    inputs: dict[NonEmpty, TensorSpec]
    """In calling order; the order is the kernel's interface."""
    outputs: dict[NonEmpty, TensorSpec]
    reference: NonEmpty
    """Python source with a top-level `def run` that takes the inputs in order and returns the outputs in order."""

    @model_validator(mode="after")
    def _validate_names_do_not_overlap(self) -> Definition:
        shared = sorted(set(self.inputs) & set(self.outputs))
        if shared:
            raise ValueError(f"{', '.join(shared)} stand in both inputs and outputs")
        return self

    @model_validator(mode="after")
    def _validate_axes_are_declared(self) -> Definition:
        for tensor, spec in {**self.inputs, **self.outputs}.items():
            missing = [axis for axis in spec.shape or () if axis not in self.axes]
            if missing:
                raise ValueError(f"{tensor} has the undeclared axis {missing[0]!r}")
        return self

    @model_validator(mode="after")
    def _validate_constraints_parse(self) -> Definition:
        for text in self.constraints:
            _parse(text, "eval", f"constraint {text!r}")
        return self

    @model_validator(mode="after")
    def _validate_reference_defines_run(self) -> Definition:
        body = getattr(_parse(self.reference, "exec", "reference"), "body", [])
        if not any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in body):
            raise ValueError("reference has no top-level function named run")
        return self

    @cached_property
    def const_axes(self) -> dict[str, int]:
        """The const axes and their lengths."""
        return {name: axis.value for name, axis in self.axes.items() if isinstance(axis, AxisConst)}

    @cached_property
    def var_axes(self) -> tuple[str, ...]:
        """The names of the var axes, in declared order."""
        return tuple(name for name, axis in self.axes.items() if isinstance(axis, AxisVar))


def _parse(source: str, mode: str, what: str) -> ast.AST:
    try:
        return ast.parse(source, mode=mode)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{what} is not Python: {error}") from error
