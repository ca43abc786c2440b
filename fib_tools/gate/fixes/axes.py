"""Axes that the dump uses without declaring them, const axes without a value, and lengths that only an output has."""

from __future__ import annotations

import ast
import re

from fib_tools.errors import FormatError
from fib_tools.gate.derived import find_meaning
from fib_tools.gate.fixes.draft import Draft
from fib_tools.model.expressions import evaluate, find_names

__all__ = ["find_expressions", "fix_axes", "fix_constraints"]

_MULTIPLE = re.compile(r"(?P<product>\w+) == (?:(?P<first>\d+) \* )?(?P<axis>[A-Za-z_]\w*)(?: \* (?P<last>\d+))?")


def fix_axes(draft: Draft) -> None:
    """Declare what is used, solve const axes from what is known, and bind axes that only outputs have."""
    _declare(draft)
    _drop_unused(draft)
    _solve_const(draft)
    _bind_derived(draft)


def _used(draft: Draft) -> list[str]:
    specs = [*draft.inputs.values(), *draft.outputs.values()]
    return list(dict.fromkeys(axis for spec in specs for axis in spec["shape"] or ()))


def _declare(draft: Draft) -> None:
    for axis in _used(draft):
        if axis in draft.axes:
            continue
        if axis.isdecimal():
            _rename_number(draft, axis)
            continue
        draft.axes[axis] = {"type": "var"}
        expression = _meaning(draft, axis)
        if expression:
            draft.constraints.append(f"{axis} == {expression}")
        draft.change(f"axis {axis} declared" + (f" as {expression}" if expression else ""))


def _rename_number(draft: Draft, number: str) -> None:
    """Give an axis that is written as its length a name."""
    name = f"size_{number}"
    draft.axes[name] = {"type": "const", "value": int(number)}
    for spec in [*draft.inputs.values(), *draft.outputs.values()]:
        if spec["shape"]:
            spec["shape"] = [name if axis == number else axis for axis in spec["shape"]]
    draft.change(f"axis {number} named {name}")


def _drop_unused(draft: Draft) -> None:
    """Leave out var axes of inputs that are gone; const ones stay, since they may be parameters of the kernel."""
    used = set(_used(draft))
    for axis in [name for name, spec in draft.axes.items() if name not in used and spec.get("type") == "var"]:
        del draft.axes[axis]
        draft.change(f"axis {axis} dropped: no tensor has it")


def _solve_const(draft: Draft) -> None:
    unsolved = [name for name, spec in draft.axes.items() if spec.get("type") == "const" and spec.get("value") is None]
    for axis in unsolved:
        value = draft.values.get(axis)
        if not isinstance(value, int):
            value = _evaluate(draft, axis)
        if isinstance(value, int) and value >= 0:
            draft.axes[axis]["value"] = int(value)
            draft.change(f"const axis {axis} solved: {int(value)}")
        elif axis in _used(draft):
            draft.axes[axis]["type"] = "var"
            draft.change(f"const axis {axis} without a value declared var")
        else:
            del draft.axes[axis]
            draft.change(f"const axis {axis} without a value dropped: no tensor has it")


def _evaluate(draft: Draft, axis: str) -> int | None:
    known = draft.const_values
    for expression in find_expressions(draft, axis):
        try:
            if find_names(expression) <= known.keys():
                return evaluate(expression, known)
        except FormatError:
            continue
    return None


def find_expressions(draft: Draft, axis: str) -> list[str]:
    """Gather what says how long an axis is: constraints with it alone on one side, then its name."""
    found = []
    for text in draft.constraints:
        left, equals, right = text.partition("==")
        if equals and "==" not in right:
            sides = (left.strip(), right.strip())
            found += [other for side, other in (sides, sides[::-1]) if side == axis]
    meaning = _meaning(draft, axis)
    return [*found, *([meaning] if meaning else [])]


def _meaning(draft: Draft, axis: str) -> str | None:
    return find_meaning(axis, draft.axes.keys(), {**draft.values, **draft.baked})


def _bind_derived(draft: Draft) -> None:
    """Say how long an axis is that follows from others, above all one that no input has: a caller must allocate it."""
    bound = draft.axes_of_inputs()
    for axis, spec in draft.axes.items():
        if spec.get("type") != "var" or (axis in bound and not _meaning(draft, axis)):
            continue
        expressions = find_expressions(draft, axis)
        if not expressions:
            draft.change(f"axis {axis} stands in outputs only, and nothing says how long it is")
        elif not any(_is_equality_of(text, axis) for text in draft.constraints):
            draft.constraints.append(f"{axis} == {expressions[0]}")
            draft.change(f"axis {axis} bound to {expressions[0]}")


def _is_equality_of(text: str, axis: str) -> bool:
    left, equals, right = text.partition("==")
    return bool(equals) and axis in (left.strip(), right.strip())


def fix_constraints(draft: Draft) -> None:
    """Keep the constraints that speak of axes and inputs; write index values without `.item()`."""
    kept = []
    for text in draft.constraints:
        plain = text.replace(".item()", "").strip()
        names = _names(plain)
        if names is None or not names <= draft.axes.keys() | draft.inputs.keys() | {"min", "max", "abs"}:
            draft.change(f"constraint {text!r} dropped: it speaks of what is no axis or input")
        elif plain not in kept:
            kept.append(plain)
    draft.constraints = list(dict.fromkeys([*kept, *filter(None, (_turn_around(draft, text) for text in kept))]))


def _turn_around(draft: Draft, text: str) -> str | None:
    """Solve `K_doubled == 2 * K` for its var axis: `K == K_doubled // 2`."""
    match = _MULTIPLE.fullmatch(text)
    if match is None or (match["first"] and match["last"]):
        return None
    factor, axis = match["first"] or match["last"] or "1", match["axis"]
    if draft.axes.get(axis, {}).get("type") != "var" or match["product"] not in draft.const_values:
        return None
    return f"{axis} == {match['product']} // {factor}"


def _names(text: str) -> set[str] | None:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return None
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
