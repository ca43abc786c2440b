"""What a function's signature says about a call: `(self, q: torch.Tensor, *args, causal: bool = False) -> None`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["UNREADABLE", "Parameter", "bind_arguments", "parse_signature"]

UNREADABLE = object()
"""A default that is no literal."""

_LONGEST = 20_000
"""Characters; the longest of FlashInfer's signatures has some 3,000."""
_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "'\""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One parameter of a function."""

    name: str
    is_positional: bool
    has_default: bool = False
    default: Any = None
    """`UNREADABLE` when it is no literal."""


@lru_cache(maxsize=512)
def parse_signature(text: str) -> tuple[Parameter, ...]:
    """Read the parameters off the text of a signature; those behind a star are taken by name only.

    Annotations are passed over: they need not be Python (`<class 'int'>`).
    """
    inner = text[:_LONGEST].partition("(")[2]
    found: list[Parameter] = []
    is_positional = True
    for piece in _split(inner):
        name = piece.partition(":")[0].partition("=")[0].strip()
        if name.startswith("*"):
            is_positional = False
        elif name and name != "/":
            has_default, default = _find_default(piece)
            found.append(Parameter(name=name, is_positional=is_positional, has_default=has_default, default=default))
    return tuple(found)


def _walk(text: str) -> Iterator[tuple[int, str, int]]:
    """Yield every character outside of quotes with its place and its depth in brackets."""
    depth, quote = 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
            continue
        if letter in _QUOTES:
            quote = letter
            continue
        if letter in _CLOSING:
            depth -= 1
        yield place, letter, depth
        if letter in _OPENING:
            depth += 1


def _split(text: str) -> Iterator[str]:
    """Cut at the commas that stand in no bracket, up to the bracket that closes the list."""
    start = 0
    for place, letter, depth in _walk(text):
        if depth < 0:
            yield text[start:place]
            return
        if letter == "," and depth == 0:
            yield text[start:place]
            start = place + 1


def _find_default(piece: str) -> tuple[bool, Any]:
    place = next((place for place, letter, depth in _walk(piece) if letter == "=" and depth == 0), None)
    if place is None:
        return False, None
    try:
        return True, ast.literal_eval(piece[place + 1 :].strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return True, UNREADABLE


def bind_arguments(
    parameters: Sequence[Parameter], positional: Mapping[int, Any], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the arguments of a call their names; what the caller left out is left out here too."""
    names = [parameter.name for parameter in parameters if parameter.is_positional]
    bound = {names[place]: value for place, value in positional.items() if place < len(names)}
    return {**bound, **keywords}
