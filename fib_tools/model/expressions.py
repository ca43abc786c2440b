"""The arithmetic of constraints: `len_indptr == batch_size + 1`, evaluated without `eval`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache

from fib_tools.errors import FormatError

__all__ = ["evaluate", "find_names", "parse_expression"]

_MAX_LENGTH = 500
_MAX_MAGNITUDE = 1 << 62

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CALLS: dict[str, Callable[..., int]] = {"min": min, "max": max, "abs": abs}


def parse_expression(text: str, *, where: str = "constraint") -> ast.expr:
    """Parse an expression over axis names.

    Raises:
        FormatError: for anything but integers, names, + - * / // %, comparisons, and/or/not, if-else and min/max/abs.
    """
    try:
        return _parse(text)
    except FormatError as error:
        raise FormatError(error.what, where=where, todo=error.todo) from error


@lru_cache(maxsize=4096)
def _parse(text: str) -> ast.expr:
    """Parse once: a Definition's constraints are asked again for each of its workloads."""
    if len(text) > _MAX_LENGTH:
        raise FormatError(f"an expression of {len(text)} characters", todo=f"keep it under {_MAX_LENGTH}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FormatError(f"{text!r} is not an expression: {error}") from error
    for node in ast.walk(tree):
        _check_node(node, text)
    return tree


def _check_node(node: ast.AST, text: str) -> None:
    allowed = (
        ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Name, ast.Load,
        ast.And, ast.Or, ast.Not, ast.USub, ast.UAdd, *_BINARY, *_COMPARE,
    )  # fmt: skip
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, int):
            raise FormatError(f"{text!r} holds the constant {node.value!r}", todo="use integers only")
    elif isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _CALLS or node.keywords:
            raise FormatError(f"{text!r} calls something other than min, max or abs")
    elif not isinstance(node, allowed):
        raise FormatError(f"{text!r} uses {type(node).__name__}", todo="use plain integer arithmetic")


def find_names(text: str, *, where: str = "constraint") -> frozenset[str]:
    """Return the axis names an expression speaks of."""
    parse_expression(text, where=where)
    return _names(text)


@lru_cache(maxsize=4096)
def _names(text: str) -> frozenset[str]:
    nodes = ast.walk(_parse(text))
    return frozenset(node.id for node in nodes if isinstance(node, ast.Name) and node.id not in _CALLS)


def evaluate(text: str, axes: Mapping[str, int], *, where: str = "constraint") -> int:
    """Evaluate an expression with axis values; comparisons give 0 or 1.

    Raises:
        FormatError: for an unknown name, a division by zero, or a value beyond 2**62.
    """
    try:
        return _value(parse_expression(text, where=where), axes)
    except KeyError as error:
        raise FormatError(f"{text!r} names the axis {error.args[0]!r}, which has no value", where=where) from error
    except ZeroDivisionError as error:
        raise FormatError(f"{text!r} divides by zero", where=where) from error
    except OverflowError as error:
        raise FormatError(f"{text!r} has a value beyond 2**62", where=where) from error
    except (TypeError, ValueError) as error:
        raise FormatError(f"{text!r} cannot be evaluated: {error}", where=where) from error


def _value(node: ast.expr, axes: Mapping[str, int]) -> int:
    result = _raw_value(node, axes)
    if abs(result) > _MAX_MAGNITUDE:
        raise OverflowError
    return result


def _raw_value(node: ast.expr, axes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant):
        return int(node.value)  # type: ignore[arg-type]  # parse_expression lets integers through only
    if isinstance(node, ast.Name):
        return axes[node.id]
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](_value(node.left, axes), _value(node.right, axes))
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, axes)
        return int(not inner) if isinstance(node.op, ast.Not) else -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BoolOp):
        truths = (bool(_value(item, axes)) for item in node.values)
        return int(all(truths) if isinstance(node.op, ast.And) else any(truths))
    if isinstance(node, ast.Compare):
        return _compare(node, axes)
    if isinstance(node, ast.IfExp):
        return _value(node.body if _value(node.test, axes) else node.orelse, axes)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _CALLS[node.func.id](*(_value(item, axes) for item in node.args))
    raise TypeError(type(node).__name__)


def _compare(node: ast.Compare, axes: Mapping[str, int]) -> int:
    left = _value(node.left, axes)
    for symbol, right_node in zip(node.ops, node.comparators, strict=True):
        right = _value(right_node, axes)
        if not _COMPARE[type(symbol)](left, right):
            return 0
        left = right
    return 1
