from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from fib_tools.model.summary import Result
from fib_tools.operations import OPERATIONS, Effect, Operation, get_operation
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.request import DEFAULTS, ModelArgument, ModelOptions

every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.verb)


@every_operation
def test_an_operation_says_what_it_does_in_one_sentence(operation: Operation) -> None:
    text = inspect.getdoc(operation.function) or ""
    first, *rest = text.split("\n")
    assert re.fullmatch(r"[A-Z][^\n]{10,130}\.", first), first
    assert not rest or rest[0] == "", "a blank line stands between the first sentence and the rest"


@every_operation
def test_every_option_of_an_operation_is_described(operation: Operation) -> None:
    for option in operation.list_options():
        assert re.fullmatch(r"\S.*\.", option.description, re.DOTALL), f"{option.name} is not described"


@every_operation
def test_an_operation_takes_a_context_and_returns_a_result(operation: Operation) -> None:
    hints = get_type_hints(operation.function)
    first = next(iter(inspect.signature(operation.function).parameters.values()))
    assert hints[first.name] is Context
    assert issubclass(hints["return"], Result)
    subjects = [option for option in operation.list_options() if option.is_subject]
    assert len(subjects) <= 1, "beyond its subject everything is named"


def test_the_fields_of_a_model_are_options_of_their_own_and_come_back_as_that_model(tmp_path: Path) -> None:
    seen: list[ModelOptions] = []

    def look(_context: Context, model: ModelArgument, options: ModelOptions = DEFAULTS) -> Result:
        """Look."""
        assert model == "x"
        seen.append(options)
        return Result()

    operation = replace(get_operation("inventory"), function=look)
    assert [option.name for option in operation.list_options()] == ["model", *ModelOptions.model_fields]
    operation.run(Context(workspace=Workspace(root=tmp_path)), {"model": "x", "tp_list": (2,)})
    assert seen == [ModelOptions(tp_list=(2,))]


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
