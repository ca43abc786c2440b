"""Canonical bytes: the same document always has the same bytes, whoever writes it."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from fib_tools.errors import FormatError
from fib_tools.model.base import Model, to_document

__all__ = ["canonical_bytes", "content_hash", "format_line", "load_json"]

_MAX_DEPTH = 64


def canonical_bytes(document: Model | Any) -> bytes:
    """Write a document as indented JSON in its own field order, UTF-8, with a final newline."""
    plain = _plain(to_document(document))
    return (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def format_line(document: Model | Any) -> str:
    """Write a document as one JSON line, as JSONL files hold it."""
    return json.dumps(_plain(to_document(document)), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


def content_hash(document: Model | Any) -> str:
    """Hash what a document says (SHA-256 of its sorted compact form), whatever the order of its keys."""
    plain = _plain(to_document(document))
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load_json(text: str | bytes, *, where: str, first_line: int = 1) -> Any:
    """Parse JSON, refusing duplicate keys and nesting deeper than 64; `first_line` is the text's own in its file.

    Raises:
        FormatError: with line and column.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_object)
    except json.JSONDecodeError as error:
        raise FormatError(
            f"not JSON: {error.msg}", where=f"{where}:{error.lineno + first_line - 1}:{error.colno}"
        ) from error
    except _DuplicateKeyError as error:
        raise FormatError(f"the key {error.key!r} stands twice in one object", where=where) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FormatError(f"not JSON: {error}", where=where) from error
    if _may_hold_surrogates(text) and _holds_surrogates(value):
        raise FormatError("half a character (a lone surrogate) stands in it", where=where)
    if _is_deeper(value, _MAX_DEPTH):
        raise FormatError(f"nested deeper than {_MAX_DEPTH} levels", where=where)
    return value


def _may_hold_surrogates(text: str | bytes) -> bool:
    """Tell whether an escape such as backslash-ud800 stands in the text, which is rare and quick to see."""
    return rb"\ud" in text.lower() if isinstance(text, bytes) else r"\ud" in text.lower()


def _holds_surrogates(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


class _DuplicateKeyError(Exception):
    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(key)


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return result


def _is_deeper(value: Any, limit: int) -> bool:
    layer = [value]
    for _ in range(limit):
        layer = [child for item in layer for child in _children(item)]
        if not layer:
            return False
    return True


def _children(item: Any) -> list[Any]:
    children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return [child for child in children if isinstance(child, (dict, list))]


def _plain(value: Any) -> Any:
    """Write infinities and NaN as the strings that flashinfer-bench reads back as floats."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
