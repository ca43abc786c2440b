"""Definition names as values: `gqa_paged_decode_h32_kv8_d128_ps1` is words and numbered parts, in order.

>>> name = parse_name("moe_fp8_block_scale_ds_routing_topk8_ng1_kg1_e48_h7168_i2048")
>>> name.numbers["e"], str(name)[:7]
(48, 'moe_fp8')
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fib_tools.errors import PathError

__all__ = ["DefinitionName", "NamePart", "cut_name", "format_name", "parse_name"]

_MAX_LENGTH = 160
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_NUMBERED = re.compile(r"([A-Za-z]+)(0|[1-9][0-9]*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamePart:
    """A stretch between underscores: a word, or a key with its number."""

    word: str
    number: int | None = None

    def __str__(self) -> str:
        return self.word if self.number is None else f"{self.word}{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DefinitionName:
    """A definition's name, cut into its parts; `str()` gives the name back."""

    parts: tuple[NamePart, ...]

    def __str__(self) -> str:
        return "_".join(str(part) for part in self.parts)

    @property
    def numbers(self) -> dict[str, int]:
        """The numbered parts; where a key stands twice, the last one."""
        return {part.word: part.number for part in self.parts if part.number is not None}


def parse_name(text: str) -> DefinitionName:
    """Cut a definition's name into parts.

    Raises:
        PathError: when the text cannot be a name, since names become file names.
    """
    if len(text) > _MAX_LENGTH or not _NAME.fullmatch(text) or ".." in text:
        raise PathError(
            f"{text[:_MAX_LENGTH]!r} cannot be a definition's name",
            todo=f"use letters, digits and _ . + -, at most {_MAX_LENGTH} characters",
        )
    return cut_name(text)


def cut_name(text: str) -> DefinitionName:
    """Cut any text at its underscores, whether or not it can name a file: names in files of others are only read."""
    return DefinitionName(parts=tuple(_parse_part(piece) for piece in text.split("_")))


def _parse_part(piece: str) -> NamePart:
    match = _NUMBERED.fullmatch(piece)
    return NamePart(word=match[1], number=int(match[2])) if match else NamePart(word=piece)


def format_name(*pieces: str | tuple[str, int]) -> str:
    """Join words and (key, number) pairs: `format_name("rmsnorm", ("h", 4096))` gives `rmsnorm_h4096`."""
    name = "_".join(piece if isinstance(piece, str) else f"{piece[0]}{piece[1]}" for piece in pieces if piece)
    parse_name(name)
    return name
