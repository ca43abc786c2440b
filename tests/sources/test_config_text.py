from __future__ import annotations

import math

import pytest

from fib_tools.errors import ConfigError
from fib_tools.sources.config_text import parse_config


def test_a_config_keeps_its_fields_in_order() -> None:
    assert list(parse_config(b'{"b": 1, "a": {"c": [2.5]}}', where="x")) == ["b", "a"]


def test_the_open_time_step_limit_of_mamba_is_an_infinity() -> None:
    assert parse_config(b'{"time_step_limit": [0.0, Infinity]}', where="x") == {"time_step_limit": [0.0, math.inf]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "is a list"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"rope": {"theta": NaN}}', r"nan is not a number .* rope\.theta"),
        (b'{"layers": [1, {"x": Infinity}]}', r"layers\.1\.x"),
        (b'{"vocab_size": 1e999}', "inf is not a number"),
        (b'{"time_step_limit": [NaN]}', "nan is not a number"),
        (b'{"a": ' * 100 + b"1" + b"}" * 100, "nested deeper"),
        (b"[" * 200_000, "not JSON|nested"),
    ],
)
def test_what_no_config_can_mean_is_refused_with_its_place(text: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(text, where="config.json")
    assert caught.value.where is not None
    assert caught.value.where.startswith("config.json")
