from __future__ import annotations

from typing import get_args

import pytest

from fib_tools.errors import RequestError
from fib_tools.llm.prices import DEFAULT_MODEL, PRICES, PRICES_SOURCE, Usage, get_price, parse_price


def test_every_price_has_a_source_with_a_date_and_costs_something() -> None:
    assert "2026" in PRICES_SOURCE
    assert [name for name, price in PRICES.items() if not 0 < price.cache_read < price.input < price.output] == []


def test_every_price_is_one_of_a_model_that_the_sdk_knows() -> None:
    from anthropic.types.model import Model

    known = set(get_args(get_args(Model)[0]))
    assert set(PRICES) <= known
    assert DEFAULT_MODEL in PRICES


def test_a_dated_name_has_the_price_of_its_model() -> None:
    assert get_price("claude-haiku-4-5-20251001") == PRICES["claude-haiku-4-5"]


def test_an_unknown_model_is_not_taken_for_a_cheap_one() -> None:
    with pytest.raises(RequestError, match="--usd-per-mtok"):
        get_price("claude-sonnet-9")


def test_each_kind_of_token_has_its_own_price() -> None:
    usage = Usage(input=1_000_000, output=1_000_000, cache_write=1_000_000, cache_read=1_000_000)
    assert PRICES["claude-sonnet-5-5"].cost(usage) == pytest.approx(2 + 10 + 2.5 + 0.1)
    assert parse_price("3, 15").cost(usage) == pytest.approx(3 + 15 + 3.75 + 0.3)


def test_a_long_prompt_costs_more_where_the_model_says_so() -> None:
    price = PRICES["claude-haiku-5-5"]
    assert price.cost(Usage(input=100_000)) == pytest.approx(0.01)
    assert price.cost(Usage(input=100_001)) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("prompt", [0, 50_000, 100_000, 100_001, 400_000])
def test_the_output_that_is_afforded_costs_no_more_than_there_is(prompt: int) -> None:
    for price in PRICES.values():
        output = price.afford_output(1.5, prompt=prompt)
        worst = Usage(output=output, cache_write=prompt)
        assert output == 0 or price.cost(worst) <= 1.5
        assert price.cost(worst + Usage(output=2)) > 1.5


@pytest.mark.parametrize("text", ["", "3", "3,", "3,15,1", "-3,15", "nan,1", "inf,1", "three,15"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is not a price"):
        parse_price(text)
