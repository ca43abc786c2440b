"""A Definition as somebody wrote it by hand, read closely: every fault at once, with what to change.

What a document can show by itself; whether the reference does what it declares is seen when it runs.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fib_tools.errors import FormatError
from fib_tools.gate.naming_rule import NAMING_RULE, Naming, find_name_faults, suggest_name
from fib_tools.gate.strict import find_axis_faults
from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition, DType, TensorSpec
from fib_tools.model.expressions import find_names
from fib_tools.model.report import Problem
from fib_tools.model.tags import parse_tag
from fib_tools.op_types.axes import choose_axes

__all__ = ["Review", "find_signature_problems", "review_definition", "shorten"]

_FOUND_LENGTH = 160
_TEXT_LENGTH = 400
_OP_TYPE = re.compile(r"[a-z][a-z0-9_]{1,60}")
_MOST_REFERENCE = 64 << 10
_MOST_TENSORS = 64
_GROUP_TAGS = ("tp", "ep")
_DTYPES = ", ".join(item.value for item in DType)
_STAND_INS: Mapping[str, str] = {"uint8": "int8", "uint32": "int32", "uint16": "int16", "float64": "float32"}
"""The published schema has no such type; tensors of it are viewed, or computed, as this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """What a close reading showed."""

    definition: Definition | None
    """None when the document cannot be read as one."""
    problems: tuple[Problem, ...] = ()


def shorten(text: str, length: int = _TEXT_LENGTH) -> str:
    """Cut a text that untrusted documents or code gave."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def review_definition(document: Any) -> Review:
    """Read a parsed JSON document as a Definition and gather what is wrong with it."""
    if not isinstance(document, dict):
        fault = _problem("definition", type(document).__name__, "a JSON object", "send the Definition itself")
        return Review(definition=None, problems=(fault,))
    definition, problems = _read(document)
    problems += _find_relation_problems(document)
    problems += _find_name_problems(document)
    if definition is not None:
        problems += _find_problems_of(definition)
    unique = {problem.model_dump_json(): problem for problem in problems}
    return Review(definition=definition, problems=tuple(unique.values()))


def _problem(field: str, found: object, expected: str, todo: str) -> Problem:
    text = found if isinstance(found, str) else json.dumps(found, default=repr)
    return Problem(field=field, found=shorten(text, _FOUND_LENGTH), expected=shorten(expected), todo=shorten(todo))


def _read(document: dict[str, Any]) -> tuple[Definition | None, list[Problem]]:
    try:
        return Definition.model_validate_json(json.dumps(document), strict=True, extra="forbid"), []
    except ValidationError as error:
        return None, [_explain(dict(item)) for item in error.errors(include_url=False) if item["type"] != "value_error"]
    except RecursionError:
        return None, [_problem("definition", "too many levels", "a flat document", "nest less")]


def _explain(error: dict[str, Any]) -> Problem:
    location = [str(step) for step in error["loc"]]
    if location[:1] == ["axes"]:
        location = [step for place, step in enumerate(location) if place != 2 or step not in {"const", "var"}]
    field = ".".join(location)
    found = error.get("input")
    if error["type"] == "extra_forbidden":
        return _problem(field, found, "no such field in the schema", "remove it, or move what it says to `description`")
    if error["type"] == "missing":
        return _problem(field, "nothing", "a value", f"add `{location[-1]}`")
    if location[-1] == "dtype":
        stand_in = _STAND_INS.get(str(found))
        advice = f"use {stand_in}, and say in `description` what it stands for" if stand_in else "use one of those"
        return _problem(field, found, _DTYPES, advice)
    return _problem(field, found, error["msg"], "correct the value")


def _find_relation_problems(document: Mapping[str, Any]) -> list[Problem]:
    """Check what one field says against another; parts of the wrong type are somebody else's problem."""
    axes, inputs, outputs = (_mapping(document.get(name)) for name in ("axes", "inputs", "outputs"))
    problems = [
        _problem(f"outputs.{name}", name, "a name that no input has", "rename it: outputs are new tensors")
        for name in outputs
        if name in inputs
    ]
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        problems += _find_shape_problems(kind, tensors, axes)
        if document.get(kind) == {}:
            problems.append(_problem(kind, "no tensor", "at least one", f"declare the {kind} in calling order"))
        if len(tensors) > _MOST_TENSORS:
            problems.append(_problem(kind, f"{len(tensors)} tensors", f"at most {_MOST_TENSORS}", "split the kernel"))
    problems += _find_constraint_problems(document, {*axes, *inputs})
    problems += _find_tag_problems(document)
    problems += _find_reference_problems(document, list(inputs))
    return problems


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _find_name_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Check op_type and name, as far as they and the axes can be read."""
    name, op_type, reference = (document.get(field) for field in ("name", "op_type", "reference"))
    if not isinstance(name, str) or not isinstance(op_type, str) or not name or not op_type:
        return
    if not _OP_TYPE.fullmatch(op_type):
        yield _problem("op_type", op_type, "small letters, digits and _", "use the dataset's folder name")
        return
    values = {axis: _mapping(item).get("value") for axis, item in _mapping(document.get("axes")).items()}
    naming = Naming(
        name=name,
        op_type=op_type,
        const_axes={axis: value for axis, value in values.items() if type(value) is int},
        reference=reference if isinstance(reference, str) else "",
    )
    suggestion = suggest_name(naming)
    for found, expected in find_name_faults(naming):
        yield _problem("name", found, expected, f"use {suggestion}" if suggestion else NAMING_RULE)


def _find_shape_problems(kind: str, tensors: Mapping[str, Any], axes: Mapping[str, Any]) -> Iterator[Problem]:
    known = ", ".join(axes) or "none are declared"
    for name, spec in tensors.items():
        shape = _mapping(spec).get("shape")
        for axis in shape if isinstance(shape, list) else ():
            if isinstance(axis, str) and axis not in axes:
                where = f"{kind}.{name}.shape"
                yield _problem(where, axis, f"a declared axis ({known})", f"declare {axis!r} in `axes`, or correct it")


def _find_constraint_problems(document: Mapping[str, Any], known: set[str]) -> Iterator[Problem]:
    texts = document.get("constraints")
    for index, text in enumerate(texts if isinstance(texts, list) else ()):
        field = f"constraints[{index}]"
        if not isinstance(text, str):
            continue
        try:
            names = find_names(text)
        except FormatError as error:
            if not _speaks_of_values(text):
                yield _problem(field, text, "integers, axis names, + - * / // %, comparisons", error.what)
            continue
        for name in sorted(names - known):
            yield _problem(
                field, text, f"names of axes ({', '.join(sorted(known))})", f"declare {name!r} or leave it out"
            )


def _speaks_of_values(text: str) -> bool:
    """Tell whether a constraint is about a tensor's contents, such as `total_q == qo_indptr[-1]`: nobody evaluates it."""
    try:
        return any(isinstance(node, ast.Subscript) for node in ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _find_tag_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    tags = document.get("tags")
    for index, text in enumerate(tags if isinstance(tags, list) else ()):
        if not isinstance(text, str):
            continue
        field = f"tags[{index}]"
        try:
            tag = parse_tag(text)
        except FormatError as error:
            yield _problem(field, text, "key:value on one line", error.todo or "correct it")
            continue
        if tag.key == "status" and tag.value != "unverified":
            yield _problem(field, text, "status:unverified", "leave it out: a test on a GPU makes it verified")
        if tag.key in _GROUP_TAGS and not re.fullmatch(r"[1-9][0-9]{0,3}", tag.value or ""):
            yield _problem(field, text, f"{tag.key}:8, one number a tag", "write one tag for each size")


def _find_reference_problems(document: Mapping[str, Any], inputs: list[str]) -> Iterator[Problem]:
    source = document.get("reference")
    if not isinstance(source, str):
        return
    if len(source) > _MOST_REFERENCE:
        yield _problem(
            "reference", f"{len(source)} characters", f"at most {_MOST_REFERENCE}", "keep to what `run` needs"
        )
        return
    yield from find_signature_problems("reference", source, function="run", inputs=inputs)


def find_signature_problems(field: str, source: str, *, function: str, inputs: list[str]) -> Iterator[Problem]:
    """Check that a source defines the function, and that it takes the inputs in their order."""
    wanted = f"def {function}({', '.join(inputs)}): ..."
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"{field}, line {line}" if line else field
        yield _problem(where, str(error), "Python source", "correct the syntax")
        return
    found = [node for node in tree.body if getattr(node, "name", None) == function]
    if not found or not isinstance(found[-1], ast.FunctionDef):
        kind = "an async function or a class" if found else f"no top-level {function}"
        yield _problem(field, kind, wanted, f"define a plain top-level function {function}")
        return
    arguments = found[-1].args
    names = [item.arg for item in (*arguments.posonlyargs, *arguments.args)]
    if names != inputs or arguments.vararg or arguments.kwarg or arguments.kwonlyargs:
        yield _problem(
            field, f"{function}({ast.unparse(arguments)})", wanted, "take the inputs, in their order, by name"
        )


def _find_problems_of(definition: Definition) -> Iterator[Problem]:
    """Check what needs a whole Definition: axes that cannot be, constraints that cannot hold."""
    for fault in find_axis_faults(to_document(definition)):
        yield _problem("axes", fault, "axes that a model can have", "check which dimension of the tensor this is")
    yield from _find_free_axes(definition)
    try:
        choose_axes(definition)
    except FormatError as error:
        yield _problem(
            "constraints", error.what, "constraints that hold together", "correct the axes or the constraint"
        )


def _find_free_axes(definition: Definition) -> Iterator[Problem]:
    """Find var axes that no input and no constraint ties down: a workload could not give them a length."""
    bound = {axis for spec in definition.inputs.values() for axis in spec.shape or ()}
    bound |= {name for text in definition.constraints for name in _names(text)}
    for axis in definition.var_axes:
        if axis not in bound:
            users = [name for name, spec in definition.outputs.items() if axis in _axes_of(spec)]
            found = f"a var axis of {', '.join(users)} only" if users else "a var axis of no tensor"
            yield _problem(f"axes.{axis}", found, "an axis of some input", "use it in an input's shape, or remove it")


def _axes_of(spec: TensorSpec) -> list[str]:
    return spec.shape or []


def _names(text: str) -> frozenset[str] | set[str]:
    try:
        return find_names(text)
    except FormatError:
        return set()
