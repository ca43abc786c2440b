from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fib_tools.gate.normalise import normalise
from fib_tools.gate.templates import TemplateResult

MakeRaw = Callable[..., dict[str, Any]]
Run = Callable[..., Any]

_INT = {"shape": None, "dtype": "int32"}


@pytest.fixture
def ones() -> Any:
    import torch

    return torch.ones(2, 8)


def test_an_optional_scalar_that_the_reference_does_not_take_is_dropped(make_raw: MakeRaw, run: Run, ones: Any) -> None:
    scale = {"shape": None, "dtype": "float32", "optional": True}
    found = normalise(make_raw("def _toy(x):\n    return x\n", inputs={"scale": scale, "N": _INT}))
    assert "input scale dropped: the reference does not take it" in found.changes
    assert "input N dropped: the reference does not take it" in found.changes
    assert run(found, ones).shape == (2, 8)


def test_a_scalar_that_is_a_length_is_read_from_the_tensor(make_raw: MakeRaw, run: Run, ones: Any) -> None:
    found = normalise(make_raw("def _toy(x, M):\n    return x * M\n", inputs={"M": _INT}))
    assert "input M dropped: the axis M says it" in found.changes
    assert float(run(found, ones)[0, 0]) == 2


def test_an_integer_of_the_call_is_a_constant_of_the_kernel(make_raw: MakeRaw, run: Run, ones: Any) -> None:
    raw = make_raw("def _toy(x, k):\n    return x * k\n", inputs={"k": _INT})
    found = normalise(raw, call=TemplateResult(fi_api="toy", values={"k": 5}))
    assert "input k dropped: its value 5 is a constant of the kernel" in found.changes
    assert float(run(found, ones)[0, 0]) == 5


def test_a_switch_without_a_default_gets_its_neutral_value(make_raw: MakeRaw, run: Run, ones: Any) -> None:
    optional = {**_INT, "optional": True}
    raw = make_raw("def _toy(x, n_group):\n    return x * (n_group + 1)\n", inputs={"n_group": optional})
    found = normalise(raw)
    assert "input n_group dropped: absent, so 1" in found.changes
    assert float(run(found, ones)[0, 0]) == 2


def test_an_integer_without_a_default_or_a_neutral_value_stays_an_input(make_raw: MakeRaw) -> None:
    found = normalise(make_raw("def _toy(x, k):\n    return x * k\n", inputs={"k": {**_INT, "optional": True}}))
    assert found.definition is not None
    assert list(found.definition.inputs) == ["x", "k"]


def test_a_run_that_fits_already_is_kept_as_it_is(make_raw: MakeRaw) -> None:
    raw = make_raw("def run(x):\n    return x\n")
    found = normalise(raw)
    assert found.definition is not None
    assert found.definition.reference == raw["reference"]


def test_a_run_that_does_not_fit_is_renamed_and_wrapped(make_raw: MakeRaw, run: Run, ones: Any) -> None:
    found = normalise(make_raw("def run(x, N, M):\n    return x * N * M\n"))
    assert found.definition is not None
    assert "def _reference(x, N, M):" in found.definition.reference
    assert float(run(found, ones)[0, 0]) == 16


def test_a_plain_argument_of_the_call_is_passed(make_raw: MakeRaw, run: Run, ones: Any) -> None:
    raw = make_raw("def _toy(x, layout):\n    return x * len(layout)\n")
    found = normalise(raw, call=TemplateResult(fi_api="toy", values={"layout": "NHD"}))
    assert float(run(found, ones)[0, 0]) == 3


def test_scratch_space_is_passed_as_none(make_raw: MakeRaw, run: Run, ones: Any) -> None:
    raw = make_raw("def _toy(x, workspace_buffer):\n    assert workspace_buffer is None\n    return x\n")
    assert run(normalise(raw), ones).shape == (2, 8)


def test_an_argument_that_is_none_and_has_a_default_is_not_passed(make_raw: MakeRaw) -> None:
    raw = make_raw("def _toy(x, N, enable_pdl=None):\n    return x\n")
    found = normalise(raw)
    assert found.definition is not None
    assert "_toy(x=x, N=8)" in found.definition.reference


def test_a_reference_that_returns_nothing_needs_a_buffer_for_each_output(make_raw: MakeRaw) -> None:
    assert normalise(make_raw("def _toy(x):\n    x.sum()\n")).refused == (
        "the reference returns nothing, and no argument of it is the output y"
    )


def test_a_call_of_several_outputs_gives_them_in_order(make_raw: MakeRaw, run: Run, ones: Any) -> None:
    spec = {"shape": ["M", "N"], "dtype": "float32"}
    raw = make_raw("def _toy(x, N):\n    return x, x + N\n", outputs={"y": spec, "z": spec})
    y, z = run(normalise(raw), ones)
    assert (float(y[0, 0]), float(z[0, 0])) == (1, 9)


def test_a_lone_output_is_taken_out_of_a_tuple(make_raw: MakeRaw, run: Run, ones: Any) -> None:
    body = "def _pair(x):\n    return x * 3, None\n\ndef _toy(x, N):\n    return _pair(x)\n"
    assert float(run(normalise(make_raw(body)), ones)[0, 0]) == 3


def test_the_length_of_a_buffer_is_worked_out_from_the_axes_of_inputs(make_raw: MakeRaw, run: Run, ones: Any) -> None:
    raw = make_raw(
        "def _toy(x, y):\n    y[: x.shape[0]] = x[:, 0]\n",
        inputs={"k": {"shape": None, "dtype": "float32"}},
        axes={"padded": {"type": "var"}},
        outputs={"y": {"shape": ["padded"], "dtype": "float32"}},
        constraints=["padded == 2 * M + N // 4"],
    )
    assert run(normalise(raw), ones, 1.0).tolist() == [1, 1, 0, 0, 0, 0]


def test_a_buffer_of_a_length_that_nothing_tells_is_refused(make_raw: MakeRaw) -> None:
    raw = make_raw(
        "def _toy(x, y):\n    y.copy_(x)\n",
        axes={"padded": {"type": "var"}},
        outputs={"y": {"shape": ["padded"], "dtype": "float32"}},
        constraints=["padded == padded // 1"],
    )
    assert normalise(raw).refused == "the reference needs the length of padded, which no input has"


def _fill(constraints: list[str]) -> dict[str, Any]:
    """Give a raw dump whose reference fills an output that no input has the length of."""
    return {
        "axes": {"M": {"type": "var"}, "T": {"type": "var"}, "U": {"type": "var"}},
        "constraints": constraints,
        "outputs": {
            "y": {"shape": ["T"], "dtype": "float32", "param": "y"},
            "z": {"shape": ["U"], "dtype": "float32", "param": "z"},
        },
    }


@pytest.mark.parametrize("constraints", [["T == U + 1", "U == T - 1"], ["T == ip[-1]", "U == T"]])
def test_lengths_that_go_round_in_circles_are_refused(make_raw: MakeRaw, constraints: list[str]) -> None:
    raw = make_raw("def _toy(x, y, z):\n    y.copy_(x)\n    z.copy_(x)\n") | _fill(constraints)
    raw["inputs"] = {"x": {"shape": ["M"], "dtype": "float32"}}
    found = normalise(raw)
    assert found.definition is None
    assert "which no input has" in str(found.refused)
