"""The code in a model's answer, and what it calls its technique."""

from __future__ import annotations

import re

from fib_tools.errors import FormatError

__all__ = ["extract_source", "extract_technique", "extract_why"]

_FENCE = re.compile(r"^```[^\n`]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_TECHNIQUE = re.compile(r"^\W*technique\W*:\W*(.+?)\W*$", re.MULTILINE | re.IGNORECASE)
_WHY = re.compile(r"^\W*why\W*:[^\w\n]*(\w.*)$", re.MULTILINE | re.IGNORECASE)
_LONGEST_TECHNIQUE = 60
_LONGEST_WHY = 300
_LONGEST_SOURCE = 200_000
_RUN = re.compile(r"\brun\b\s*\(")


def extract_source(text: str) -> str:
    """Find the source: the longest fenced block that has a `run`.

    Raises:
        FormatError: there is none; the message is written for the model.
    """
    blocks = [block for block in _FENCE.findall(text) if _RUN.search(block)]
    if not blocks:
        started = text.count("```") % 2 == 1
        what = "the code block was cut off" if started else "there is no fenced code block that defines run"
        raise FormatError(what, todo="answer with one complete block that holds the whole source file")
    longest: str = max(blocks, key=len)
    if len(longest) > _LONGEST_SOURCE:
        raise FormatError(f"the source has {len(longest)} characters", todo="write a shorter one")
    return longest


def extract_technique(text: str) -> str:
    """Find what the model calls its technique, in lower case and in a few words; `unnamed` if it does not say."""
    found = _TECHNIQUE.search(text)
    words = " ".join(found[1].split()).casefold() if found else ""
    return words[:_LONGEST_TECHNIQUE].rstrip() or "unnamed"


def extract_why(text: str) -> str:
    """Find why the model expects it to be fast; empty if it does not say."""
    found = _WHY.search(text)
    return " ".join(found[1].split())[:_LONGEST_WHY] if found else ""
