from __future__ import annotations

import inspect
import re
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from pydantic.fields import FieldInfo

from fib_tools.model.summary import Result
from fib_tools.operations import OPERATIONS, Effect, Operation, get_operation
from fib_tools.phases.context import Context

every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.verb)


@every_operation
def test_an_operation_says_what_it_does_in_one_sentence(operation: Operation) -> None:
    text = inspect.getdoc(operation.function) or ""
    first, *rest = text.split("\n")
    assert re.fullmatch(r"[A-Z][^\n]{10,130}\.", first), first
    assert not rest or rest[0] == "", "a blank line stands between the first sentence and the rest"


@every_operation
def test_every_parameter_of_an_operation_is_described(operation: Operation) -> None:
    hints = get_type_hints(operation.function, include_extras=True)
    for name in list(inspect.signature(operation.function).parameters)[1:]:
        assert get_origin(hints[name]) is Annotated, f"{name} has no description"
        fields = [item for item in get_args(hints[name]) if isinstance(item, FieldInfo)]
        assert len(fields) == 1
        assert re.fullmatch(r"\S.*\.", fields[0].description or "", re.DOTALL), f"{name} is not described"


@every_operation
def test_an_operation_takes_a_context_and_returns_a_result(operation: Operation) -> None:
    hints = get_type_hints(operation.function)
    first, *others = inspect.signature(operation.function).parameters.values()
    assert hints[first.name] is Context
    assert issubclass(hints["return"], Result)
    positional = [item for item in others if item.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert len(positional) <= 1, "beyond its subject everything is named"


@every_operation
def test_a_tool_is_named_for_its_command(operation: Operation) -> None:
    assert re.fullmatch(rf"fib_{operation.verb}_[a-z_]+", operation.tool) or operation.verb == "status"
    assert get_operation(operation.verb) is operation


def test_verbs_and_tools_are_there_once() -> None:
    assert len({operation.verb for operation in OPERATIONS}) == len(OPERATIONS)
    assert len({operation.tool for operation in OPERATIONS}) == len(OPERATIONS)
    assert all(isinstance(operation.effect, Effect) for operation in OPERATIONS)


def test_a_result_has_nothing_to_say_of_its_own() -> None:
    assert not Result().has_errors
    assert Result().summary().lines == ()
