"""What an operation is: a function of the phases, with all that a face needs to offer it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from fib_tools.errors import RequestError, StorageError
from fib_tools.model.base import Model
from fib_tools.model.summary import Result
from fib_tools.model.texts import read_texts
from fib_tools.phases.context import Context
from fib_tools.phases.request import COMMAND_LINE_ONLY, NEEDED_BY_AGENTS

__all__ = ["Effect", "Operation", "Option", "build_arguments", "list_fields", "read_arguments", "read_summary"]


class Effect(str, Enum):
    """The furthest place an operation writes to."""

    READ = "read"
    WORKSPACE = "workspace"
    OUTSIDE = "outside"


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One thing a caller may say: what every face turns into its own kind of parameter."""

    name: str
    kind: Any
    """Its type, without description and bounds."""
    annotation: Any
    """Its type with them."""
    description: str
    default: Any = inspect.Parameter.empty
    is_subject: bool = False
    """It may be given without its name: the model of `fib onboard MODEL`."""
    is_needed_by_agents: bool = False
    """People may leave it out, and agents may not."""
    is_for_agents: bool = True
    """Not so for a place outside the workspace, and for what runs with the rights of the user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One thing the tools can do."""

    verb: str
    """The command: `fib validate`."""
    tool: str
    """The MCP tool: `fib_validate_dataset`; empty for a command that agents are not offered."""
    entry: str | Callable[..., Result]
    """The function, as a rule `module:name`: a command loads what it runs and nothing else. It takes a Context, then
    parameters that are annotated with their description, or models; its docstring is the help."""
    phase: int | None
    """The onboarding phase it belongs to, if it is one."""
    effect: Effect
    is_long: bool = False
    """It may take more than a few seconds."""
    is_open_world: bool = False
    """It may read from the network."""
    answer: str = ""
    """The class, `module:name`, of what agents are answered, where the function returns something else to people too."""

    @property
    def function(self) -> Callable[..., Result]:
        """What does it."""
        found: Callable[..., Result] = resolve_name(self.entry) if isinstance(self.entry, str) else self.entry
        return found

    @property
    def summary(self) -> str:
        """The first line of its help, for which nothing is loaded."""
        return read_summary(self.entry) if isinstance(self.entry, str) else _take_first_line(self.entry.__doc__)

    @property
    def result(self) -> type[Result]:
        """What agents are answered."""
        found: type[Result] = resolve_name(self.answer) if self.answer else get_type_hints(self.function)["return"]
        return found

    def list_options(self) -> tuple[Option, ...]:
        """List what a caller may say; a parameter that is a model gives one option for each of its fields."""
        return tuple(option for parameter in _list_parameters(self.function) for option in _list_options(parameter))

    def list_options_for_agents(self) -> tuple[Option, ...]:
        """List what an agent may say."""
        offered = (option for option in self.list_options() if option.is_for_agents)
        required = inspect.Parameter.empty
        return tuple(replace(each, default=required) if each.is_needed_by_agents else each for each in offered)

    def run(self, context: Context, values: Mapping[str, Any]) -> Result:
        """Run it with options by name; those left out have their defaults.

        Raises:
            RequestError: an option is missing, unknown or out of bounds.
            StorageError: the system refused to read or write something.
        """
        read = read_arguments(build_arguments(self.tool or self.verb, self.list_options()), values)
        given = {name: _place(context, getattr(read, name)) for name in values}
        arguments: dict[str, Any] = {}
        for parameter in _list_parameters(self.function):
            own = {option.name: given[option.name] for option in _list_options(parameter) if option.name in given}
            group = _find_group(parameter)
            arguments |= {parameter.name: group(**own)} if group else own
        try:
            return self.function(context, **arguments)
        except OSError as error:  # what the system refuses to read; what it refuses to write is a StorageError already
            raise StorageError(
                f"the system refused: {error.strerror or error}",
                where=str(error.filename or context.workspace.root),
                todo="check the path and its permissions",
            ) from error


def read_summary(entry: str) -> str:
    """Read the first line of the docstring of a function, `module:name`, from its source: it is not loaded."""
    module, _, name = entry.partition(":")
    spec = find_spec(module)
    source = Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin is not None else ""
    # the function alone: to parse all of its file takes ten times as long
    found = re.search(rf"^def {name}\(.*?(?=^[^\s)]|\Z)", source, re.MULTILINE | re.DOTALL)
    node = ast.parse(found.group()).body[0] if found else None
    return _take_first_line(ast.get_docstring(node)) if isinstance(node, ast.FunctionDef) else ""


def _take_first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def build_arguments(name: str, options: Iterable[Option]) -> type[BaseModel]:
    """Build the class of some options' values, with types and bounds."""
    fields: dict[str, Any] = {}
    for option in options:
        default = ... if option.default is inspect.Parameter.empty else option.default
        fields[option.name] = (option.annotation, Field(default, description=option.description))
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True), **fields)


def read_arguments(kind: type[BaseModel], values: Mapping[str, Any]) -> BaseModel:
    """Read a caller's arguments.

    Raises:
        RequestError: naming the first that is wrong, and what it is for.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        # a name that is not known explains why another is missing
        problem = min(problems, key=lambda item: item["type"] != "extra_forbidden")
        name = str(problem["loc"][0]) if problem["loc"] else ""
        fault = "" if len(problem["loc"]) > 1 else problem["type"]  # what is missing inside of a value is no option
        raise _refusal(kind, name, fault, f"{problem['input']!r}"[:80], problem["msg"]) from error


def _refusal(kind: type[BaseModel], name: str, fault: str, value: str, message: str) -> RequestError:
    if fault == "extra_forbidden":
        return RequestError(f"there is no option {name!r}", todo=f"use {', '.join(kind.model_fields)}")
    field = kind.model_fields.get(name)
    todo = (field.description if field else None) or "see the help"
    if fault == "missing":
        return RequestError(f"{name} is missing", todo=todo)
    return RequestError(f"{name} cannot be {value}: {message[:1].lower()}{message[1:]}", todo=todo)


def _place(context: Context, value: Any) -> Any:
    return context.check_readable(value) if isinstance(value, Path) else value


def _list_parameters(function: Callable[..., Result]) -> list[inspect.Parameter]:
    """List an operation's parameters after the context, with their types resolved."""
    hints = get_type_hints(function, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]
    return [item.replace(annotation=hints[item.name]) for item in own]


def _find_group(parameter: inspect.Parameter) -> type[Model] | None:
    """Find the model whose fields a parameter stands for."""
    kind = next(iter(get_args(parameter.annotation)), parameter.annotation)
    return kind if isinstance(kind, type) and issubclass(kind, Model) else None


def _list_options(parameter: inspect.Parameter) -> list[Option]:
    _, *metadata = get_args(parameter.annotation) or (None,)
    group = _find_group(parameter)
    if group:
        is_for_agents = COMMAND_LINE_ONLY not in metadata
        return [replace(option, is_for_agents=is_for_agents) for option in list_fields(group)]
    return [
        Option(
            name=parameter.name,
            kind=_without_extras(parameter.annotation),
            annotation=parameter.annotation,
            default=parameter.default,
            description=next((item.description or "" for item in metadata if isinstance(item, FieldInfo)), ""),
            is_subject=parameter.kind is not inspect.Parameter.KEYWORD_ONLY,
            is_for_agents=COMMAND_LINE_ONLY not in metadata,
            is_needed_by_agents=NEEDED_BY_AGENTS in metadata,
        )
    ]


def list_fields(kind: type[Model]) -> list[Option]:
    """List the fields of a model as options."""
    kinds, annotations = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    texts = read_texts(kind)
    return [
        Option(
            name=name,
            kind=kinds[name],
            annotation=annotations[name],
            default=inspect.Parameter.empty if field.is_required() else field.default,
            description=field.description or texts.get(name, ""),
        )
        for name, field in kind.model_fields.items()
    ]


def _without_extras(annotation: Any) -> Any:
    """Strip descriptions and bounds off a type, at every depth."""
    holder = type("holder", (), {"__annotations__": {"kind": annotation}})
    return get_type_hints(holder)["kind"]
