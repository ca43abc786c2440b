from __future__ import annotations

import pytest
import torch

from fib_tools.evaluate.judge.unwritten import find_unwritten

POISON = b"\xa5"


def _poisoned(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    flat = torch.full((*shape, dtype.itemsize), 0xA5, dtype=torch.uint8).view(dtype)
    return flat.reshape(shape)


def test_memory_that_was_never_written_is_found() -> None:
    want = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = want.clone()
    got[2, 1, 4:] = _poisoned(4)
    found = find_unwritten(got, want, POISON)
    assert found is not None
    assert (found.calls, found.values, found.call, found.index) == ((2,), 4, 2, (1, 4))
    assert str(found) == "4 values of 1 calls were never written, the first at call 2 [1, 4]"
    assert find_unwritten(want.clone(), want, POISON) is None


def test_one_value_of_several_bytes_is_enough() -> None:
    want = torch.zeros(1, 5, dtype=torch.int32)
    got = want.clone()
    got[0, 4] = _poisoned(1, dtype=torch.int32)[0]
    found = find_unwritten(got, want, POISON)
    assert found is not None
    assert found.index == (4,)


def test_a_single_byte_like_the_poison_is_a_code_but_a_run_is_not() -> None:
    want = torch.zeros(1, 4, 8, dtype=torch.int8)
    got = want.clone()
    got[0, 1, 2] = _poisoned(1, dtype=torch.int8)[0]
    assert find_unwritten(got, want, POISON) is None
    got[0, 1, 2:6] = _poisoned(4, dtype=torch.int8)
    found = find_unwritten(got, want, POISON)
    assert found is not None
    assert found.index == (1, 2)


def test_values_that_the_reference_has_too_are_no_poison() -> None:
    want = _poisoned(2, 4, 4)
    assert find_unwritten(want.clone(), want, POISON) is None


def test_a_long_pattern_begins_anew_with_each_call() -> None:
    pattern = bytes.fromhex("0102030405060708")
    want = torch.zeros(2, 6, dtype=torch.int16)
    got = want.clone()
    got[1] = torch.tensor(list(pattern * 2)[:12], dtype=torch.uint8).view(torch.int16)
    found = find_unwritten(got, want, pattern)
    assert found is not None
    assert found.values == 6
    with pytest.raises(ValueError, match="3 bytes"):
        find_unwritten(got, want, b"abc")


def test_nothing_is_unwritten_where_nothing_is() -> None:
    assert find_unwritten(torch.ones(2, 0), torch.ones(2, 0), POISON) is None
