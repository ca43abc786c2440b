from __future__ import annotations

import math
from typing import Any

import pytest

from fib_tools.model.definition import AxisConst, AxisVar, Definition, DType
from fib_tools.op_types.base import scalar, tensor
from fib_tools.op_types.input_request import torch_dtype
from fib_tools.op_types.inputs import generate_inputs


def _definition(*, op_type: str = "unheard_of", **inputs: Any) -> Definition:
    return Definition(
        name="trial",
        op_type=op_type,
        axes={"rows": AxisVar(), "columns": AxisConst(value=16)},
        inputs=inputs,
        outputs={},
        reference="def run():\n    pass\n",
    )


AXES = {"rows": 4, "columns": 16}


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.FLOAT4_E2M1])
def test_every_element_type_of_the_schema_can_be_made(dtype: DType) -> None:
    made = generate_inputs(_definition(x=tensor(dtype.value, "rows columns", "x")), AXES)["x"]
    assert tuple(made.shape) == (4, 16)
    assert made.dtype == torch_dtype(dtype)


def test_float4_is_the_packed_type_of_torch() -> None:
    import torch

    assert torch_dtype(DType.FLOAT4_E2M1) is torch.float4_e2m1fn_x2


def test_inputs_come_in_calling_order_and_scalars_are_numbers() -> None:
    definition = _definition(b=scalar("float32", "b"), a=scalar("int32", "a"), c=scalar("bool", "c"))
    made = generate_inputs(definition, AXES)
    assert list(made.items()) == [("b", 1.0), ("a", 1), ("c", False)]


def test_a_seed_makes_the_same_inputs_and_another_seed_others() -> None:
    import torch

    definition = _definition(x=tensor("bfloat16", "rows columns", "x"))
    first, again, other = (generate_inputs(definition, AXES, seed=seed)["x"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float8_e4m3fn"])
def test_values_are_normal_beyond_the_block_that_is_drawn(dtype: str) -> None:
    axes = {"rows": 150_000, "columns": 16}
    made = generate_inputs(_definition(x=tensor(dtype, "rows columns", "x")), axes)["x"].float()
    assert abs(made.mean().item()) < 0.01
    assert abs(made.std().item() - 1) < 0.02
    assert made[:10].equal(made[65536:65546]), "the block repeats"


def test_a_tensor_over_the_budget_has_its_shape_and_shares_storage() -> None:
    axes = {"rows": 1000, "columns": 16}
    made = generate_inputs(_definition(x=tensor("float32", "rows columns", "x")), axes, byte_budget=1024)["x"]
    assert tuple(made.shape) == (1000, 16)
    assert made.stride() == (0, 1)
    assert made.untyped_storage().nbytes() <= 1024


def test_a_tensor_without_elements_and_one_without_dimensions_can_be_made() -> None:
    definition = _definition(x=tensor("float32", "rows columns", "x"), y=tensor("float32", "", "y"))
    made = generate_inputs(definition, {"rows": 0, "columns": 16})
    assert tuple(made["x"].shape) == (0, 16)
    assert made["y"].shape == ()
    assert math.isfinite(made["y"].item())


def test_the_op_types_rule_wins_over_the_stock_rule() -> None:
    scale = scalar("float32", "scale")
    probs = tensor("float32", "rows columns", "probs")
    made = generate_inputs(_definition(op_type="sampling", probs=probs, sm_scale=scale), AXES)
    assert made["probs"].sum(dim=-1).tolist() == pytest.approx([1.0] * 4)
    assert made["sm_scale"] == 1.0
