"""Definitions: schema, constraints that hold, a reference that fits its interface, and texts a reader needs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from fib_tools.checks.rules import Family, error, note, warning
from fib_tools.checks.view import DatasetView
from fib_tools.dataset.layout import Kind
from fib_tools.errors import FibError, FormatError
from fib_tools.model.base import find_unknown_fields
from fib_tools.model.definition import AxisConst, Definition
from fib_tools.model.expressions import evaluate, find_names
from fib_tools.model.naming import parse_name
from fib_tools.model.report import Finding
from fib_tools.model.tags import find_tag_values, parse_tag
from fib_tools.op_types.axes import choose_axes, is_over_axes

__all__ = ["DEFINITIONS", "NOT_EXECUTED"]

_UNREADABLE = error("definition.unreadable", "the file does not hold a Definition", "mend or remove it")
_FIELD = note("definition.unknown_field", "a field that the published schema does not know")
_FALSE = error("definition.constraint_false", "a constraint does not hold for the const axes", "correct it")
_CLASH = error("definition.constraints_clash", "no lengths of the var axes satisfy the constraints", "correct them")
_STRANGE = error(
    "definition.constraint_name", "a constraint speaks of something that is no axis or input", "correct it"
)
_UNCHECKED = note("definition.constraint_unchecked", "a constraint that says more than arithmetic over axes")
NOT_EXECUTED = error("definition.not_executed", "the reference does not do what the Definition declares", "correct it")
"""Found by running the reference, which `fib validate --execute` does."""
_ARITY = error("definition.run_arity", "run does not take as many arguments as there are inputs", "correct run")
_ORDER = warning("definition.run_names", "run's parameters are not named as the inputs", "rename or reorder them")
_TEXT = warning("definition.description_missing", "a text is missing", "describe it")
_UNUSED = warning("definition.axis_unused", "an axis that no tensor and no constraint has", "remove it")
_UNBOUND = error(
    "definition.axis_unbound",
    "a var axis that no input has, so no caller can size the output",
    "give an input this axis",
)
_ZERO = warning("definition.axis_zero", "a const axis of length 0")
_TAG = error("definition.tag_malformed", "a tag that is not key:value", "correct it")
_STATUS = warning("definition.status_missing", "no status tag", "add status:unverified or status:verified")
_NUMBER = warning("definition.name_number", "a number in the name that nothing in the Definition has", "rename it")

_SUBSCRIPTED = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


def _check(view: DatasetView) -> Iterator[Finding]:
    for path, kind, problem in view.unreadable:
        name = path.rsplit("/", 1)[-1].removesuffix(".json")
        if kind is Kind.DEFINITION and view.wants(name):
            yield _UNREADABLE.at(path, problem, definition=name)
    for name, found in view.definitions.items():
        if view.wants(name):
            for path, definition in found:
                yield from (finding.model_copy(update={"definition": name}) for finding in _check_one(path, definition))


def _check_one(path: str, definition: Definition) -> Iterator[Finding]:
    for field in find_unknown_fields(definition):
        yield _FIELD.at(path, f"unknown field {field}")
    yield from _check_constraints(path, definition)
    yield from _check_run(path, definition)
    yield from _check_axes(path, definition)
    yield from _check_texts(path, definition)
    yield from _check_tags(path, definition)
    yield from _check_name(path, definition)


def _check_constraints(path: str, definition: Definition) -> Iterator[Finding]:
    known = definition.axes.keys() | definition.inputs.keys()
    sound = True
    for text in definition.constraints:
        if not is_over_axes(text, definition):
            strange = sorted(_names_in(text) - known - {"min", "max", "abs", "item", "len", "and", "or", "not"})
            if strange:
                yield _STRANGE.at(path, f"constraint {text!r} names {', '.join(strange)}")
            elif not _names_in(text) & definition.inputs.keys():
                yield _UNCHECKED.at(path, f"constraint {text!r} was not evaluated")
            continue
        if find_names(text) <= definition.const_axes.keys() and not _holds(text, definition):
            sound = False
            yield _FALSE.at(path, f"constraint {text!r} is false")
    if sound:
        try:
            choose_axes(definition)
        except FormatError as problem:
            yield _CLASH.at(path, problem.what)


def _holds(text: str, definition: Definition) -> bool:
    try:
        return bool(evaluate(text, definition.const_axes))
    except FormatError:
        return False


def _names_in(text: str) -> set[str]:
    try:
        return {node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError):
        return set(_SUBSCRIPTED.findall(text))


def _check_run(path: str, definition: Definition) -> Iterator[Finding]:
    body = ast.parse(definition.reference).body
    run = next(node for node in reversed(body) if isinstance(node, ast.FunctionDef) and node.name == "run")
    names = [argument.arg for argument in (*run.args.posonlyargs, *run.args.args)]
    least, most = len(names) - len(run.args.defaults), len(names)
    keyword_only = [
        argument.arg for argument, value in zip(run.args.kwonlyargs, run.args.kw_defaults, strict=True) if value is None
    ]
    count = len(definition.inputs)
    if count < least or (count > most and run.args.vararg is None) or keyword_only:
        yield _ARITY.at(path, f"run takes {', '.join(names) or 'nothing'}; inputs are {', '.join(definition.inputs)}")
    elif run.args.vararg is None and names[:count] != list(definition.inputs):
        yield _ORDER.at(path, f"run takes {', '.join(names)}; inputs are {', '.join(definition.inputs)}")


def _check_axes(path: str, definition: Definition) -> Iterator[Finding]:
    on_inputs = {axis for spec in definition.inputs.values() for axis in spec.shape or ()}
    on_outputs = {axis for spec in definition.outputs.values() for axis in spec.shape or ()}
    spoken = on_inputs | on_outputs | {name for text in definition.constraints for name in _names_in(text)}
    for name, axis in definition.axes.items():
        if name not in spoken:
            yield _UNUSED.at(path, f"axis {name} is declared and not used")
        if isinstance(axis, AxisConst):
            if axis.value == 0:
                yield _ZERO.at(path, f"axis {name} has length 0")
        elif name in on_outputs - on_inputs:
            yield _UNBOUND.at(path, f"axis {name} stands on outputs only")


def _check_texts(path: str, definition: Definition) -> Iterator[Finding]:
    missing = [] if definition.description else ["the Definition"]
    missing += [f"axis {name}" for name, axis in definition.axes.items() if not axis.description]
    missing += [f"input {name}" for name, spec in definition.inputs.items() if not spec.description]
    missing += [f"output {name}" for name, spec in definition.outputs.items() if not spec.description]
    if missing:
        yield _TEXT.at(path, f"no description of {', '.join(missing)}")


def _check_tags(path: str, definition: Definition) -> Iterator[Finding]:
    sound = []
    for text in definition.tags:
        try:
            parse_tag(text)
            sound.append(text)
        except FormatError as problem:
            yield _TAG.at(path, problem.what)
    if not find_tag_values(sound, "status"):
        yield _STATUS.at(path, "the tags do not say whether it was verified")


def _check_name(path: str, definition: Definition) -> Iterator[Finding]:
    try:
        numbers = parse_name(definition.name).numbers
    except FibError:
        return  # layout.bad_name says it
    said = {str(value) for value in definition.const_axes.values()}
    said |= set(
        re.findall(r"\d+", f"{definition.description or ''} {definition.reference} {' '.join(definition.constraints)}")
    )
    unsaid = [f"{key}{number}" for key, number in numbers.items() if str(number) not in said]
    if unsaid:
        yield _NUMBER.at(path, f"nothing in it has the size of {', '.join(unsaid)}")


DEFINITIONS = Family(
    name="definition",
    rules=(
        _UNREADABLE, _FIELD, _FALSE, _CLASH, _STRANGE, _UNCHECKED, NOT_EXECUTED, _ARITY, _ORDER, _TEXT, _UNUSED, _UNBOUND, _ZERO, _TAG, _STATUS,
        _NUMBER,
    ),
    check=_check,
)  # fmt: skip
