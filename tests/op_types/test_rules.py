from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fib_tools.model.definition import AxisVar, Definition
from fib_tools.op_types.base import InputRule, scalar, tensor
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.rules import (
    STOCK_RULES,
    constant,
    draw_distinct,
    indptr,
    page_lengths,
    positive,
    random,
    row_ids,
    split_total,
)

if TYPE_CHECKING:
    import torch


def _generator() -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(0)


def _make(
    rule: InputRule,
    axes: Mapping[str, int],
    *,
    dtype: str = "int32",
    shape: str | None = "n",
    made: Mapping[str, Any] | None = None,
) -> Any:
    spec = scalar(dtype, "x") if shape is None else tensor(dtype, shape, "x")
    definition = Definition(
        name="trial",
        op_type="unheard_of",
        axes={name: AxisVar() for name in axes},
        inputs={"x": spec},
        outputs={},
        reference="def run(x):\n    pass\n",
    )
    return rule(
        InputRequest(definition=definition, axes=axes, name="x", spec=spec, made=made or {}, generator=_generator())
    )


@given(st.integers(0, 300), st.integers(1, 20), st.integers(0, 5))
def test_a_total_is_cut_into_parts_that_sum_to_it(total: int, parts: int, seed: int) -> None:
    lengths = split_total(total, parts, generator=_generator().manual_seed(seed))
    assert len(lengths) == parts
    assert sum(lengths) == total
    assert min(lengths) >= (1 if total >= parts else 0)


def test_each_part_has_at_least_its_least() -> None:
    least = [4, 0, 2]
    lengths = split_total(9, 3, generator=_generator(), least=least)
    assert sum(lengths) == 9
    assert all(length >= floor for length, floor in zip(lengths, least, strict=True))


def test_nothing_can_be_cut_into_no_parts() -> None:
    assert split_total(5, 0, generator=_generator()) == []


def test_offsets_start_at_zero_never_fall_and_end_at_the_total() -> None:
    made = _make(STOCK_RULES["qo_indptr"], {"n": 5, "total_q": 12})
    assert made[0] == 0
    assert made[-1] == 12
    assert (made.diff() >= 1).all()


def test_keys_are_never_fewer_than_the_queries_that_look_at_them() -> None:
    import torch

    queries = torch.tensor([0, 9, 10, 12])
    made = _make(STOCK_RULES["kv_indptr"], {"n": 4, "total_q": 12, "total_kv": 14}, made={"qo_indptr": queries})
    assert made[-1] == 14
    assert (made.diff() >= queries.diff()).all()


def test_pages_are_enough_for_the_queries_that_look_at_them() -> None:
    import torch

    queries = torch.tensor([0, 33, 34])
    axes = {"n": 3, "total_q": 34, "num_kv_indices": 5, "page_size": 16}
    made = _make(STOCK_RULES["kv_indptr"], axes, made={"qo_indptr": queries})
    assert made[-1] == 5
    assert (made.diff() >= torch.tensor([3, 1])).all()


def test_offsets_fall_back_to_any_cut_where_the_queries_cannot_fit() -> None:
    import torch

    queries = torch.tensor([0, 9, 10])
    made = _make(STOCK_RULES["kv_indptr"], {"n": 3, "total_kv": 4}, made={"qo_indptr": queries})
    assert made[-1] == 4


def test_offsets_without_a_total_among_the_axes_still_rise() -> None:
    assert _make(indptr(("nothing",)), {"n": 4})[-1] == 12


@pytest.mark.parametrize(("count", "total"), [(5, 9), (0, 4), (100, 1 << 20), (3000, 1 << 20), (70_000, 100_000)])
def test_distinct_numbers_are_distinct_and_below_the_total(count: int, total: int) -> None:
    drawn = draw_distinct(count, total, generator=_generator())
    assert drawn.unique().numel() == drawn.numel() == count
    assert not count or (drawn.min() >= 0 and drawn.max() < total)


def test_page_ids_are_distinct_where_there_are_enough_pages() -> None:
    made = _make(row_ids("num_pages"), {"n": 6, "num_pages": 6})
    assert sorted(made.tolist()) == [0, 1, 2, 3, 4, 5]


def test_page_ids_repeat_and_stay_in_range_where_there_are_not() -> None:
    made = _make(row_ids("num_pages"), {"n": 50, "num_pages": 3})
    assert set(made.tolist()) == {0, 1, 2}


def test_last_pages_hold_one_token_to_a_full_page() -> None:
    made = _make(page_lengths, {"n": 100, "page_size": 4})
    assert set(made.tolist()) == {1, 2, 3, 4}


@pytest.mark.parametrize(("dtype", "value"), [("float32", 0.5), ("int32", 3)])
def test_a_constant_fills_a_tensor_or_is_a_number(dtype: str, value: float) -> None:
    assert _make(constant(value), {"n": 3}, dtype=dtype).tolist() == [value] * 3
    assert _make(constant(value), {"n": 3}, dtype=dtype, shape=None) == value


def test_the_softmax_scale_is_that_of_the_head() -> None:
    assert _make(STOCK_RULES["sm_scale"], {"head_dim": 64}, dtype="float32", shape=None) == 0.125


def test_scaled_values_have_the_scale_as_their_spread() -> None:
    made = _make(random(0.1), {"n": 10000}, dtype="float32")
    assert made.std().item() == pytest.approx(0.1, rel=0.05)


def test_positive_values_stay_in_their_range_and_a_scalar_is_the_middle() -> None:
    made = _make(positive(0.5, 1.5), {"n": 1000}, dtype="float32")
    assert made.min() >= 0.5
    assert made.max() < 1.5
    assert _make(positive(0.5, 1.5), {}, dtype="float32", shape=None) == 1.0
