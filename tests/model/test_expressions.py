from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fib_tools.errors import FibError, FormatError
from fib_tools.model.expressions import evaluate, find_names, parse_expression

AXES = {"batch_size": 3, "len_indptr": 4, "h": 32, "kv": 8}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("len_indptr == batch_size + 1", 1),
        ("h % kv == 0 and h // kv == 4", 1),
        ("not h < kv <= 8", 1),
        ("h if kv > 8 else -kv", -8),
        ("max(h, kv) - min(1, 2) * abs(-2)", 30),
        ("h / kv", 4),
        ("batch_size != 3 or kv == 9", 0),
        ("+h", 32),
    ],
)
def test_an_expression_has_the_value_that_python_gives_it(text: str, value: int) -> None:
    assert evaluate(text, AXES) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "h.real", "h[0]", "lambda: 1", "[h]", "h ** kv", "'a'", "1.5", "min(h, key=1)",
        "h == ", "f(h)", "h << 3", "h + " * 300 + "h", "yield", "h := 1",
    ],
)  # fmt: skip
def test_anything_but_integer_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_expression(text)


@pytest.mark.parametrize(
    ("text", "message"), [("h // 0", "zero"), ("missing + 1", "missing"), ("4611686018427387904 * h", "2\\*\\*62")]
)
def test_an_expression_without_a_value_says_why(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        evaluate(text, AXES)


def test_the_names_of_an_expression_leave_functions_out() -> None:
    assert find_names("max(h, kv) == len_indptr") == {"h", "kv", "len_indptr"}


@given(st.text(max_size=60))
def test_no_text_makes_the_parser_fail_otherwise_than_with_its_own_error(text: str) -> None:
    with contextlib.suppress(FibError):
        evaluate(text, AXES)
