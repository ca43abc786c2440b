"""Constants that a reference has baked in: `EPS = 1e-06`, read from its source."""

from __future__ import annotations

import ast
from functools import lru_cache

__all__ = ["Literal", "find_constants"]

Literal = bool | int | float | str | None


@lru_cache(maxsize=4096)
def _scan(source: str) -> tuple[tuple[str, Literal], ...]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    found: dict[str, Literal] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, values = node.targets[0].id, _literal(node.value)
            if name.isupper() and values:
                found.setdefault(name, values[0])
    return tuple(found.items())


def find_constants(source: str) -> dict[str, Literal]:
    """Return the constants of a reference, by name, wherever in it they are set; empty when it is no Python."""
    return dict(_scan(source))


def _literal(node: ast.expr) -> tuple[Literal, ...]:
    """Return a literal's value as the only element; empty when it is no literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str, type(None))):
        return (node.value,)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return tuple(-value for value in _literal(node.operand) if isinstance(value, (int, float)))
    return ()
