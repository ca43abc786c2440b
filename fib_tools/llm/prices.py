"""What a model's tokens cost, so that a run can keep to its budget."""

from __future__ import annotations

import math
import re

from pydantic import Field

from fib_tools.errors import RequestError
from fib_tools.model.base import Model, NonNegative

__all__ = ["DEFAULT_MODEL", "PRICES", "PRICES_SOURCE", "Price", "Usage", "get_price", "parse_price"]

DEFAULT_MODEL = "claude-sonnet-5-5"
"""The newest Sonnet that anthropic 2.11.0 lists: it follows a skill well at a fifth of the price of the largest."""

_DATED = re.compile(r"-20[0-9]{6}$")
_MILLION = 1_000_000


class Usage(Model):
    """Tokens of one answer, or of many."""

    input: NonNegative = 0
    """Read at the full price: neither from the cache nor into it."""
    output: NonNegative = 0
    cache_write: NonNegative = 0
    cache_read: NonNegative = 0

    @property
    def prompt(self) -> int:
        """All that the model read, at whatever price."""
        return self.input + self.cache_write + self.cache_read

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input=self.input + other.input,
            output=self.output + other.output,
            cache_write=self.cache_write + other.cache_write,
            cache_read=self.cache_read + other.cache_read,
        )


class Price(Model):
    """USD for a million tokens; the cache is the one of five minutes."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_write: float = Field(ge=0)
    cache_read: float = Field(ge=0)
    long_prompt_above: int | None = None
    """A prompt of more tokens costs `long_prompt_factor` times as much, and so does its answer."""
    long_prompt_factor: float = Field(default=1, ge=1)

    def cost(self, usage: Usage) -> float:
        """Compute what an answer cost, in USD."""
        total = (
            usage.input * self.input
            + usage.output * self.output
            + usage.cache_write * self.cache_write
            + usage.cache_read * self.cache_read
        )
        return total * self._factor(usage.prompt) / _MILLION

    def halve(self) -> Price:
        """Give the price of answers that come in batches."""
        halves = {name: getattr(self, name) / 2 for name in ("input", "output", "cache_write", "cache_read")}
        return self.model_copy(update=halves)

    def afford_output(self, usd: float, *, prompt: int) -> int:
        """Compute how many tokens of output the money buys if the whole prompt has to be written into the cache anew."""
        left = usd - self.cost(Usage(cache_write=prompt))
        if left <= 0:
            return 0
        per_token = self.output * self._factor(prompt) / _MILLION
        return int(left / per_token) if per_token else _MILLION

    def _factor(self, prompt: int) -> float:
        return self.long_prompt_factor if self.long_prompt_above and prompt > self.long_prompt_above else 1.0


def _row(read: float, written: float, *, cache_read: float | None = None) -> Price:
    """Writing into the cache costs 1.25 times the input; reading from it a tenth, unless the row says otherwise."""
    cached = read / 10 if cache_read is None else cache_read
    return Price(input=read, output=written, cache_write=read * 1.25, cache_read=cached)


PRICES_SOURCE = "the price tiers in the model catalog of @anthropic-ai/claude-code 2.1.329, read 2026-11-21"

PRICES: dict[str, Price] = {
    "claude-haiku-4-5": _row(1, 5),
    "claude-haiku-5-5": _row(0.1, 0.5).model_copy(update={"long_prompt_above": 100_000, "long_prompt_factor": 5.0}),
    "claude-sonnet-4-5": _row(3, 15),
    "claude-sonnet-4-6": _row(3, 15),
    "claude-sonnet-5": _row(2, 10),
    "claude-sonnet-5-5": _row(2, 10, cache_read=0.1),
    "claude-opus-4-5": _row(5, 25),
    "claude-opus-4-6": _row(5, 25),
    "claude-opus-4-7": _row(5, 25),
    "claude-opus-4-8": _row(5, 25),
    "claude-opus-5": _row(5, 25),
    "claude-opus-5-5": _row(4, 20, cache_read=0.2),
    "claude-fable-5": _row(10, 50),
    "claude-fable-5-1": _row(10, 50, cache_read=0.25),
    "claude-fable-5-2": _row(8, 40, cache_read=0.2),
    "claude-mythos-5": _row(10, 50),
    "claude-mythos-5-1": _row(10, 50, cache_read=0.25),
    "claude-mythos-5-2": _row(8, 40, cache_read=0.2),
}
"""USD for a million tokens, by model; PRICES_SOURCE says whose numbers they are."""


def get_price(model: str) -> Price:
    """Return the price of a model, with or without a date behind its name.

    Raises:
        RequestError: it is not in the table, so that no budget could be kept.
    """
    price = PRICES.get(_DATED.sub("", model))
    if price is None:
        known = ", ".join(sorted(PRICES))
        raise RequestError(
            f"the price of the model {model!r} is not known, so its budget cannot be kept",
            where="--model",
            todo=f"pass --usd-per-mtok IN,OUT (USD for a million tokens), or use one of {known}",
        )
    return price


def parse_price(text: str) -> Price:
    """Parse `3,15`: USD for a million tokens of input and of output.

    Raises:
        RequestError: it is something else.
    """
    try:
        read, written = (float(piece) for piece in text.split(","))
    except ValueError:
        read = written = math.nan
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise RequestError(f"{text!r} is not a price", where="--usd-per-mtok", todo="pass two numbers such as 3,15")
    return _row(read, written)
