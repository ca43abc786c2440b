"""What stands below a field in its class's source: its text in schemas and in help, read when one is asked for.

To read all of them when classes are made takes longer than most commands.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

__all__ = ["read_texts"]

_NO_TEXTS = ("builtins", "pydantic")


def read_texts(kind: type) -> Mapping[str, str]:
    """Read the texts of a class's fields, those of its bases among them."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.partition(".")[0] not in _NO_TEXTS:
            found |= _read_file(_find_source(base)).get(base.__qualname__, {})
    return found


def _find_source(kind: type) -> str:
    try:
        return inspect.getsourcefile(kind) or ""
    except (TypeError, OSError):  # built in, or typed in
        return ""


@cache
def _read_file(path: str) -> Mapping[str, Mapping[str, str]]:
    """Read the texts below annotated names, by class and name."""
    if not path or not Path(path).is_file():
        return {}
    return dict(_list_classes(ast.parse(Path(path).read_text(encoding="utf-8")).body, ""))


def _list_classes(body: list[ast.stmt], outer: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield f"{outer}{node.name}", dict(_list_texts(node.body))
            yield from _list_classes(node.body, f"{outer}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield from _list_classes(node.body, f"{outer}{node.name}.<locals>.")


def _list_texts(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield field.target.id, inspect.cleandoc(text.value)
