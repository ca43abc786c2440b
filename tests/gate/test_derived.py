from __future__ import annotations

import pytest

from fib_tools.gate.derived import find_meaning


@pytest.mark.parametrize(
    ("axis", "axes", "meaning"),
    [
        ("K_div_16", ("K",), "K // 16"),
        ("hidden_div_2", ("hidden_size",), "hidden_size // 2"),
        ("N_mul_2", ("N",), "N * 2"),
        ("batch_size_plus_1", ("batch_size",), "batch_size + 1"),
        ("batch_size_plus_1_q", ("batch_size",), "batch_size + 1"),
        ("one", (), "1"),
        ("zero", (), "0"),
        ("num_packed_intermediate", ("gemm1_out_size",), "gemm1_out_size // 4"),
        ("K_sf_div_4", ("K", "block_size"), "K // block_size // 4"),
        ("K_div_16", (), None),
        ("anything", ("K",), None),
    ],
)
def test_a_name_says_what_an_axis_is(axis: str, axes: tuple[str, ...], meaning: str | None) -> None:
    assert find_meaning(axis, axes) == meaning


def test_a_divisor_can_be_a_value_of_the_call() -> None:
    assert find_meaning("hidden_div_block_size", ("hidden_size",), {"block_size": 16}) == "hidden_size // 16"
    assert find_meaning("hidden_div_block_size", ("hidden_size",)) is None
