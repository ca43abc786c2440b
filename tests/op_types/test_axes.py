from __future__ import annotations

import pytest

from fib_tools.errors import FormatError
from fib_tools.model.definition import Axis, AxisConst, AxisVar, Definition
from fib_tools.op_types.axes import choose_axes, is_over_axes


def _definition(axes: dict[str, Axis], *constraints: str, op_type: str = "unheard_of") -> Definition:
    return Definition(
        name="trial",
        op_type=op_type,
        axes=axes,
        constraints=list(constraints),
        inputs={},
        outputs={},
        reference="def run():\n    pass\n",
    )


VAR = AxisVar()


def test_const_axes_have_their_own_length_and_var_axes_differ_from_each_other() -> None:
    axes = choose_axes(_definition({"batch_size": VAR, "seq_len": VAR, "M": VAR, "head_dim": AxisConst(value=128)}))
    assert axes == {"batch_size": 3, "seq_len": 5, "M": 6, "head_dim": 128}


def test_the_callers_sizes_win_over_the_op_types_and_those_over_the_general_ones() -> None:
    definition = _definition({"total_seq_len": VAR, "seq_len": VAR}, op_type="gdn")
    assert choose_axes(definition) == {"total_seq_len": 11, "seq_len": 4}
    assert choose_axes(definition, {"seq_len": 9}) == {"total_seq_len": 11, "seq_len": 9}


@pytest.mark.parametrize("text", ["len_indptr == batch_size + 1", "batch_size + 1 == len_indptr"])
def test_an_equality_sets_the_axis_on_either_side(text: str) -> None:
    axes = {"len_indptr": VAR, "batch_size": VAR}
    assert choose_axes(_definition(axes, text), {"batch_size": 7}) == {"len_indptr": 8, "batch_size": 7}


def test_equalities_that_depend_on_each_other_settle_in_any_order() -> None:
    axes = {"a": VAR, "b": VAR, "c": VAR}
    chosen = choose_axes(_definition(axes, "c == b * 2", "b == a + 1"), {"a": 4})
    assert chosen == {"a": 4, "b": 5, "c": 10}


def test_a_length_is_rounded_up_to_the_multiple_that_a_constraint_wants() -> None:
    axes = {"q_size": VAR, "k_size": VAR, "head_size": AxisConst(value=128)}
    definition = _definition(axes, "q_size % head_size == 0", "k_size % head_size == 0")
    assert choose_axes(definition, {"q_size": 300, "k_size": 128}) == {"q_size": 384, "k_size": 128, "head_size": 128}


def test_a_constraint_that_cannot_hold_is_named_with_its_values() -> None:
    definition = _definition({"heads": AxisConst(value=6), "kv": AxisConst(value=4)}, "heads % kv == 0")
    with pytest.raises(FormatError, match=r"'heads % kv == 0' does not hold with heads=6, kv=4"):
        choose_axes(definition)


def test_a_division_by_zero_in_a_constraint_is_an_error_of_the_document() -> None:
    definition = _definition({"q_size": VAR, "empty": AxisConst(value=0)}, "q_size % empty == 0")
    with pytest.raises(FormatError, match="divides by zero"):
        choose_axes(definition)


def test_a_constraint_about_values_is_left_to_whoever_has_the_values() -> None:
    definition = _definition({"total_q": VAR}, "total_q == qo_indptr[-1]")
    assert not is_over_axes("total_q == qo_indptr[-1]", definition)
    assert not is_over_axes("total_q == other", definition)
    assert is_over_axes("total_q > 0", definition)
    assert choose_axes(definition) == {"total_q": 7}
