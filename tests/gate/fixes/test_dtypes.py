from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fib_tools.gate.normalise import normalise
from fib_tools.gate.templates import TemplateResult
from fib_tools.model.definition import DType

MakeRaw = Callable[..., dict[str, Any]]
Run = Callable[..., Any]

_PLAIN = "def _toy(x):\n    return x\n"


def _inputs(raw: dict[str, Any], call: TemplateResult | None = None) -> dict[str, DType]:
    found = normalise(raw, call=call)
    assert found.definition is not None, found.refused
    return {name: spec.dtype for name, spec in found.definition.inputs.items()}


def test_an_optional_tensor_that_the_call_left_out_is_dropped(make_raw: MakeRaw, run: Run) -> None:
    import torch

    bias = {"shape": ["N"], "dtype": "float32", "optional": True}
    raw = make_raw("def _toy(x, bias):\n    return x if bias is None else x + bias\n", inputs={"bias": bias})
    parameters = {"x": "x", "bias": "bias"}
    without = TemplateResult(fi_api="toy", bindings={"x": (1, 8), "bias": None}, parameters=parameters)
    given = TemplateResult(fi_api="toy", bindings={"x": (1, 8), "bias": (8,)}, parameters=parameters)
    assert list(_inputs(raw, without)) == ["x"]
    assert list(_inputs(raw, given)) == ["x", "bias"]
    assert float(run(normalise(raw, call=without), torch.ones(1, 8)).sum()) == 8


def test_an_optional_tensor_with_an_axis_of_its_own_is_dropped(make_raw: MakeRaw) -> None:
    raw = make_raw(
        "def _toy(x, indices=None):\n    return x\n",
        inputs={"indices": {"shape": ["L"], "dtype": "int32", "optional": True}},
        axes={"L": {"type": "var"}},
    )
    found = normalise(raw)
    assert found.definition is not None
    assert list(found.definition.inputs) == ["x"]
    assert found.definition.var_axes == ("M",)
    assert "input indices dropped: optional, and its axis is nowhere else" in found.changes


@pytest.mark.parametrize(("output", "seen"), [("bfloat16", "bfloat16"), ("int32", "float32")])
def test_a_dtype_given_as_a_number_is_that_of_the_output(make_raw: MakeRaw, run: Run, output: str, seen: str) -> None:
    import torch

    raw = make_raw(
        f"def _toy(x, out_dtype):\n    assert out_dtype is torch.{seen}\n    return x.to(torch.{output})\n",
        inputs={"out_dtype": {"shape": None, "dtype": "int32"}},
        outputs={"y": {"shape": ["M", "N"], "dtype": output}},
    )
    assert list(_inputs(raw)) == ["x"]
    assert run(normalise(raw), torch.ones(1, 8)).dtype is getattr(torch, output)


def test_a_dtype_of_the_call_is_passed_on(make_raw: MakeRaw, run: Run) -> None:
    import torch

    raw = make_raw(
        "def _toy(x, out_dtype):\n    return x.to(out_dtype)\n", inputs={"out_dtype": {"shape": None, "dtype": "dtype"}}
    )
    call = TemplateResult(fi_api="toy", values={"out_dtype": {"torch_dtype": "float16"}})
    assert run(normalise(raw, call=call), torch.ones(1, 8)).dtype is torch.float16


@pytest.mark.parametrize(
    ("optional", "words"),
    [(True, "an optional string keeps its default"), (False, "a string is no input; the reference's default holds")],
)
def test_a_string_that_nobody_knows_leaves_the_default(
    make_raw: MakeRaw, run: Run, *, optional: bool, words: str
) -> None:
    import torch

    raw = make_raw(
        "def _toy(x, mode='two'):\n    return x * {'two': 2}[mode]\n",
        inputs={"mode": {"shape": None, "dtype": "string", "optional": optional}},
    )
    found = normalise(raw)
    assert f"input mode dropped: {words}" in found.changes
    assert float(run(found, torch.ones(1, 8)).sum()) == 16


def test_a_float64_input_is_float32(make_raw: MakeRaw) -> None:
    raw = make_raw("def _toy(x, s):\n    return x\n", inputs={"s": {"shape": ["N"], "dtype": "float64"}})
    assert _inputs(raw)["s"] is DType.FLOAT32


def test_an_input_of_a_type_that_nothing_stands_for_is_refused(make_raw: MakeRaw) -> None:
    raw = make_raw("def _toy(x, s):\n    return x\n", inputs={"s": {"shape": ["N"], "dtype": "complex64"}})
    assert normalise(raw).refused == "input s has the dtype 'complex64', which the schema cannot express"


def test_a_buffer_that_the_kernel_writes_has_the_type_of_its_neighbour(make_raw: MakeRaw) -> None:
    raw = make_raw(
        "def _toy(x, out):\n    out.copy_(x)\n",
        inputs={"out": {"shape": ["M", "N"], "dtype": "unknown", "optional": True}},
        outputs={"y": {"shape": ["M", "N"], "dtype": "float32", "param": "out"}},
    )
    raw["inputs"]["x"]["dtype"] = "bfloat16"
    assert _inputs(raw)["out"] is DType.BFLOAT16


def test_an_output_without_a_type_has_that_of_the_input_beside_it(make_raw: MakeRaw) -> None:
    raw = make_raw(_PLAIN, outputs={"y": {"shape": ["M", "N"], "dtype": "unknown"}})
    found = normalise(raw)
    assert found.definition is not None
    assert found.definition.outputs["y"].dtype is DType.FLOAT32
    assert "output y: unknown as float32, like the input that shares its axes" in found.changes


def test_an_output_without_a_type_or_a_neighbour_is_refused(make_raw: MakeRaw) -> None:
    raw = make_raw(_PLAIN, outputs={"y": {"shape": ["M", "N"], "dtype": "unknown"}})
    raw["inputs"]["x"]["dtype"] = "int32"
    assert normalise(raw).refused == "nothing tells the dtype of output y"
