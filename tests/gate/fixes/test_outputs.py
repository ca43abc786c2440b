from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fib_tools.gate.normalise import normalise

MakeRaw = Callable[..., dict[str, Any]]
Run = Callable[..., Any]

_Y = {"shape": ["M", "N"], "dtype": "float32"}


def test_optional_outputs_are_dropped_from_the_last_until_the_returned_ones_are_left(
    make_raw: MakeRaw, run: Run
) -> None:
    import torch

    raw = make_raw("def _toy(x):\n    return x, x + 1\n")
    raw["outputs"] = {
        "y": _Y,
        "first": {**_Y, "optional": True},
        "bits": {**_Y, "dtype": "uint8", "optional": True},
        "wide": {**_Y, "dtype": "float64", "optional": True},
    }
    found = normalise(raw)
    assert found.definition is not None
    assert list(found.definition.outputs) == ["y", "first"]
    assert len(run(found, torch.ones(1, 8))) == 2


def test_too_many_values_for_the_outputs_are_refused(make_raw: MakeRaw) -> None:
    raw = make_raw("def _toy(x):\n    return x, x\n")
    assert normalise(raw).refused == "the reference returns 2 of the outputs y"


def test_every_output_may_stay_when_all_come_back(make_raw: MakeRaw) -> None:
    raw = make_raw("def _toy(x):\n    return x, x\n", outputs={"y": _Y, "z": {**_Y, "optional": True}})
    found = normalise(raw)
    assert found.definition is not None
    assert list(found.definition.outputs) == ["y", "z"]


def test_an_output_whose_fresh_name_is_taken_is_called_updated(make_raw: MakeRaw, run: Run) -> None:
    import torch

    raw = make_raw("def _toy(x, x_out):\n    x += x_out\n    return x\n", inputs={"x_out": _Y}, outputs={"x": _Y})
    found = normalise(raw)
    assert found.definition is not None
    assert list(found.definition.outputs) == ["updated_x"]
    state = torch.ones(1, 8)
    assert float(run(found, state, torch.ones(1, 8)).sum()) == 16
    assert float(state.sum()) == 8


def test_a_tensor_of_bits_that_is_written_in_place_goes_in_and_out_as_int8(make_raw: MakeRaw, run: Run) -> None:
    import torch

    bits = {"shape": ["M", "N"], "dtype": "uint8"}
    raw = make_raw("def _toy(x):\n    assert x.dtype is torch.uint8\n    x += 100\n    return x\n")
    raw |= {"inputs": {"x": bits}, "outputs": {"x": bits}}
    found = normalise(raw)
    state = torch.full((1, 8), 100, dtype=torch.int8)
    result = run(found, state)
    assert result.dtype is torch.int8
    assert int(result[0, 0]) == 200 - 256
    assert int(state[0, 0]) == 100
