from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from fib_tools.model.definition import AxisConst, AxisVar, DType, TensorSpec
from fib_tools.op_types.base import Parameters, const, scalar, source, tensor, var
from fib_tools.op_types.registry import get_kernel_type


class _Parameters(Parameters):
    silent: ClassVar[Mapping[str, Any]] = {"eps": 1e-6, "sm_scale": None}

    size: int
    eps: float = 1e-6
    sm_scale: float | None = None


def test_the_qualifier_spells_the_silent_parameters_that_are_not_plain() -> None:
    assert _Parameters(size=3).qualifier() == ""
    assert _Parameters(size=3, eps=1e-5).qualifier() == "eps1e-05"
    assert _Parameters(size=3, eps=1e-5, sm_scale=0.125).qualifier() == "eps1e-05_smscale0.125"


def test_a_qualifier_can_stand_in_a_name() -> None:
    from fib_tools.model.naming import parse_name

    assert str(parse_name(f"rmsnorm_h3_{_Parameters(size=3, eps=1e-5).qualifier()}")) == "rmsnorm_h3_eps1e-05"


def test_a_parameter_that_the_kernel_does_not_have_is_refused() -> None:
    with pytest.raises(ValidationError, match="hiden_size"):
        get_kernel_type("rmsnorm").build({"hiden_size": 64})


def test_axes_and_tensors_are_declared_in_one_line_each() -> None:
    assert const(3, "three") == AxisConst(value=3, description="three")
    assert var("any") == AxisVar(description="any")
    assert tensor("bfloat16", "a b", "x") == TensorSpec(shape=["a", "b"], dtype=DType.BFLOAT16, description="x")
    assert tensor("int32", "", "x").shape == []
    assert scalar("float32", "x").shape is None


def test_a_reference_has_the_imports_it_uses_then_its_constants_then_its_body() -> None:
    body = """
        def run(x):
            return F.relu(x) * math.pi * EPS
    """
    assert source(body, EPS=1e-5) == (
        "import math\nimport torch\nimport torch.nn.functional as F\n\n"
        "EPS = 1e-05\n\n\n"
        "def run(x):\n    return F.relu(x) * math.pi * EPS\n"
    )


def test_a_reference_without_constants_has_no_block_for_them() -> None:
    assert source("def run(x):\n    return x") == "import torch\n\n\ndef run(x):\n    return x\n"
