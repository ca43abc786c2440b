"""Lengths for the var axes of a trial run: small, different from each other, and obeying the constraints."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from fib_tools.errors import FormatError
from fib_tools.model.definition import Definition
from fib_tools.model.expressions import evaluate, find_names, parse_expression
from fib_tools.op_types.registry import find_op_type

__all__ = ["choose_axes", "is_over_axes"]

_SIZES: Mapping[str, int] = {
    "batch_size": 3,
    "num_seqs": 3,
    "seq_len": 5,
    "num_tokens": 6,
    "total_q": 7,
    "total_kv": 19,
    "num_kv_indices": 17,
    "num_pages": 23,
    "max_num_pages": 6,
    "max_num_blocks_per_seq": 6,
}
"""By the axis names that Definitions use. Different values, so that a swapped axis shows as a wrong shape."""

_FALLBACK = (4, 5, 6, 8, 9, 10, 12)


def choose_axes(definition: Definition, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Give every axis a length; `sizes` wins over the op_type's small lengths, those over the general ones.

    Equalities such as `len_indptr == batch_size + 1` set the axis on their left or right when it is var; those such as
    `q_size % head_size == 0` round it up to a multiple.

    Raises:
        FormatError: when the constraints cannot all hold, naming the one that fails.
    """
    op_type = find_op_type(definition.op_type)
    wanted = {**_SIZES, **(op_type.axis_sizes if op_type else {}), **(sizes or {})}
    axes = dict(definition.const_axes)
    for index, name in enumerate(definition.var_axes):
        axes[name] = wanted.get(name, _FALLBACK[index % len(_FALLBACK)])
    texts = [text for text in definition.constraints if is_over_axes(text, definition)]
    for _ in range(len(texts) + 1):
        for text in texts:
            _settle(text, axes, frozenset(definition.var_axes))
    _require(texts, axes, definition.name)
    return axes


def is_over_axes(text: str, definition: Definition) -> bool:
    """Tell whether a constraint speaks of axes only; others, such as `total_q == qo_indptr[-1]`, speak of values."""
    try:
        return find_names(text) <= definition.axes.keys()
    except FormatError:
        return False


def _settle(text: str, axes: dict[str, int], free: frozenset[str]) -> None:
    tree = parse_expression(text)
    if not (isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], ast.Eq)):
        return
    left, right = tree.left, tree.comparators[0]
    for target, other in ((left, right), (right, left)):
        if isinstance(target, ast.Name) and target.id in free:
            axes[target.id] = evaluate(ast.unparse(other), axes)
            return
    if isinstance(left, ast.BinOp) and isinstance(left.op, ast.Mod) and ast.unparse(right) == "0":
        _round_up(left, axes, free)


def _round_up(remainder: ast.BinOp, axes: dict[str, int], free: frozenset[str]) -> None:
    if isinstance(remainder.left, ast.Name) and remainder.left.id in free:
        name, divisor = remainder.left.id, evaluate(ast.unparse(remainder.right), axes)
        if divisor > 0:
            axes[name] = max(-(-axes[name] // divisor), 1) * divisor


def _require(texts: list[str], axes: Mapping[str, int], name: str) -> None:
    for text in texts:
        if not evaluate(text, axes, where=name):
            values = ", ".join(f"{axis}={axes[axis]}" for axis in sorted(find_names(text)))
            raise FormatError(f"constraint {text!r} does not hold with {values}", where=name)
