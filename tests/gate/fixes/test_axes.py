from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fib_tools.gate.normalise import Normalised, normalise
from fib_tools.gate.templates import TemplateResult
from fib_tools.model.definition import Definition

MakeRaw = Callable[..., dict[str, Any]]

_PLAIN = "def _toy(x):\n    return x\n"


def _definition(found: Normalised) -> Definition:
    assert found.definition is not None, found.refused
    return found.definition


def test_a_number_among_the_axes_leaves_scalars_alone(make_raw: MakeRaw) -> None:
    raw = make_raw(
        "def _toy(x, alpha, s):\n    return x\n",
        inputs={"alpha": {"shape": ["1"], "dtype": "float32"}, "s": {"shape": None, "dtype": "float32"}},
    )
    definition = _definition(normalise(raw))
    assert definition.const_axes == {"N": 8, "size_1": 1}
    assert definition.inputs["s"].shape is None


def test_an_axis_without_a_meaning_is_declared_free(make_raw: MakeRaw) -> None:
    raw = make_raw("def _toy(x, t):\n    return x\n", inputs={"t": {"shape": ["L"], "dtype": "float32"}})
    found = normalise(raw)
    assert "axis L declared" in found.changes
    assert _definition(found).constraints == []


def test_a_var_axis_that_no_tensor_has_is_dropped(make_raw: MakeRaw) -> None:
    found = normalise(make_raw(_PLAIN, axes={"L": {"type": "var"}}))
    assert "axis L dropped: no tensor has it" in found.changes
    assert _definition(found).var_axes == ("M",)


def test_a_const_axis_is_what_the_call_said(make_raw: MakeRaw) -> None:
    raw = make_raw(_PLAIN, axes={"top_k": {"type": "const"}})
    found = normalise(raw, call=TemplateResult(fi_api="toy", values={"top_k": 6}))
    assert "const axis top_k solved: 6" in found.changes
    assert _definition(found).const_axes == {"N": 8, "top_k": 6}


@pytest.mark.parametrize(
    ("constraints", "value"),
    [
        (["P == N // 2"], 4),
        (["N + 1 == P"], 9),
        (["P == M * 2", "P == N * 2"], 16),
        (["P == x[0]", "P == N"], 8),
        (["P == N // 0", "P == N - 1"], 7),
        (["P <= N"], None),
        (["P == M * 2"], None),
        (["P == N - 9"], None),
    ],
)
def test_a_const_axis_is_solved_by_the_first_constraint_that_can(
    make_raw: MakeRaw, constraints: list[str], value: int | None
) -> None:
    definition = _definition(normalise(make_raw(_PLAIN, axes={"P": {"type": "const"}}, constraints=constraints)))
    assert definition.const_axes.get("P") == value


def test_an_axis_that_only_an_output_has_is_bound_by_its_name(make_raw: MakeRaw) -> None:
    raw = make_raw(_PLAIN, axes={"M_plus_1": {"type": "var"}})
    raw["outputs"]["y"]["shape"] = ["M_plus_1", "N"]
    found = normalise(raw)
    assert "axis M_plus_1 bound to M + 1" in found.changes
    assert _definition(found).constraints == ["M_plus_1 == M + 1"]


@pytest.mark.parametrize("constraint", ["L == 2 * M", "2 * M == L"])
def test_an_axis_that_a_constraint_binds_is_not_bound_again(make_raw: MakeRaw, constraint: str) -> None:
    raw = make_raw(_PLAIN, axes={"L": {"type": "var"}}, constraints=[constraint])
    raw["outputs"]["y"]["shape"] = ["L", "N"]
    assert _definition(normalise(raw)).constraints == [constraint]


def test_an_axis_that_nothing_binds_is_reported(make_raw: MakeRaw) -> None:
    raw = make_raw(_PLAIN, axes={"L": {"type": "var"}})
    raw["outputs"]["y"]["shape"] = ["L", "N"]
    assert "axis L stands in outputs only, and nothing says how long it is" in normalise(raw).changes


def test_a_constraint_that_is_no_python_is_dropped_and_one_said_twice_kept_once(make_raw: MakeRaw) -> None:
    raw = make_raw(_PLAIN, constraints=["M ==", "M <= N", " M <= N ", "M < unknown"])
    found = normalise(raw)
    assert _definition(found).constraints == ["M <= N"]
    assert "constraint 'M ==' dropped: it speaks of what is no axis or input" in found.changes


@pytest.mark.parametrize(
    ("constraint", "turned"),
    [
        ("N == 2 * M", ["M == N // 2"]),
        ("N == M * 4", ["M == N // 4"]),
        ("N == M", ["M == N // 1"]),
        ("N == 2 * M * 2", []),
        ("M == 2 * N", []),
        ("N == 2 * N", []),
    ],
)
def test_only_a_multiple_of_one_var_axis_is_turned_around(
    make_raw: MakeRaw, constraint: str, turned: list[str]
) -> None:
    assert _definition(normalise(make_raw(_PLAIN, constraints=[constraint]))).constraints == [constraint, *turned]
