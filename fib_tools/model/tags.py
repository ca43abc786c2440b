"""Tags as values: `fi_api:flashinfer.norm.rmsnorm`, `tp:8`, `status:unverified`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fib_tools.errors import FormatError

__all__ = ["Tag", "find_tag_values", "merge_tags", "parse_tag"]

_ORDER = ("fi_api", "fi_name", "model", "stage", "quantization", "tp", "ep", "status")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """A key with a value, or a bare word."""

    key: str
    value: str | None = None

    def __str__(self) -> str:
        return self.key if self.value is None else f"{self.key}:{self.value}"


def parse_tag(text: str) -> Tag:
    """Cut a tag at its first colon.

    Raises:
        FormatError: for an empty key or a line break.
    """
    key, colon, value = text.partition(":")
    if not key.strip() or any(char in text for char in "\r\n\0"):
        raise FormatError(f"{text!r} is not a tag", todo="write key:value on one line")
    return Tag(key=key, value=value if colon else None)


def find_tag_values(tags: Iterable[str], key: str) -> tuple[str, ...]:
    """Return the values of every tag with this key."""
    return tuple(text.partition(":")[2] for text in tags if text.startswith(f"{key}:"))


def merge_tags(*groups: Iterable[str]) -> list[str]:
    """Join groups of tags without repeats, in one order: known keys first, numbers by value.

    A definition has one status: `status:verified` of an earlier group stands against `status:unverified`.
    """
    texts = dict.fromkeys(text for group in groups for text in group)
    if "status:verified" in texts:
        texts.pop("status:unverified", None)
    return sorted(texts, key=_rank)


def _rank(text: str) -> tuple[int, str, int, str]:
    key, _, value = text.partition(":")
    order = _ORDER.index(key) if key in _ORDER else len(_ORDER)
    return order, key, int(value) if value.isdecimal() and value.isascii() else 0, value
