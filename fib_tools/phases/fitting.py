"""Parts of a document cut to a number of bytes, as compact JSON has them."""

from __future__ import annotations

import json
from typing import Any

from fib_tools.model.base import to_document

__all__ = ["fit_excerpts", "fit_signatures", "json_size", "shorten", "take"]

_LEAST = {"summary": 60, "inputs": 200, "outputs": 60, "axes": 30}
"""Bytes that are left of each part of a signature, in the order in which they are cut."""


def json_size(value: Any) -> int:
    """Measure a value as compact JSON that escapes what is not ASCII, the longer of the two ways."""
    return len(json.dumps(to_document(value), separators=(",", ":")))


def shorten(text: str, room: int) -> str:
    """Cut a text to so many bytes of JSON."""
    while json_size(text) > room + 2:
        text = f"{text[: max(0, min(len(text) - 4, room))].rstrip('.')}..." if len(text) > 4 else ""
    return text


def take(items: list[Any], room: int) -> list[Any]:
    """Take items from the front while they fit."""
    taken: list[Any] = []
    for item in items:
        room -= json_size(item) + 1
        if room < 0:
            break
        taken.append(item)
    return taken


def fit_excerpts(excerpts: list[dict[str, Any]], room: int) -> tuple[dict[str, Any], ...]:
    """Give the best excerpt what it needs and the next ones the rest, whole lines only."""
    fitted: list[dict[str, Any]] = []
    for excerpt in excerpts:
        lines = excerpt["text"].split("\n")
        frame = json_size({**excerpt, "text": "", "more_lines": len(lines)}) + 1
        kept = _take_lines(lines, room - frame)
        if not kept:
            continue
        cut = {"more_lines": len(lines) - len(kept)} if len(kept) < len(lines) else {}
        fitted.append({**excerpt, "text": "\n".join(kept), **cut})
        room -= json_size(fitted[-1]) + 1
    return tuple(fitted)


def _take_lines(lines: list[str], room: int) -> list[str]:
    kept: list[str] = []
    for line in lines:
        room -= json_size(f"{line}\n") - 2
        if room < 0:
            break
        kept.append(line)
    return kept


def fit_signatures(neighbours: list[dict[str, str]], room: int) -> tuple[dict[str, str], ...]:
    """Give each Definition the same room; long signatures are cut."""
    each = room // max(1, len(neighbours))
    fitted = []
    for item in neighbours:
        short = dict(item)
        for name, least in _LEAST.items():
            over = json_size(short) + 1 - each
            if over > 0:
                short[name] = shorten(short[name], max(least, json_size(short[name]) - 2 - over))
        fitted.append(short)
    return tuple(take(fitted, room))
