"""The one list of what the tools can do; command line, MCP server, headless agent and documents all read it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

from pydantic.fields import FieldInfo

from fib_tools.model.base import Model
from fib_tools.model.summary import Result
from fib_tools.phases.context import Context
from fib_tools.phases.define import define_model
from fib_tools.phases.discover import discover_models
from fib_tools.phases.inventory import take_inventory
from fib_tools.phases.onboard import onboard_model
from fib_tools.phases.refresh import clone_repositories
from fib_tools.phases.status import show_status
from fib_tools.phases.validate import validate_dataset

__all__ = ["OPERATIONS", "Effect", "Operation", "Option", "get_operation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One thing a caller may say: what every face turns into its own kind of parameter."""

    name: str
    kind: Any
    """Its type, without the description."""
    description: str
    default: Any = inspect.Parameter.empty
    is_subject: bool = False
    """It may be given without its name: the model of `fib onboard MODEL`."""


class Effect(str, Enum):
    """The furthest place an operation writes to."""

    READ = "read"
    WORKSPACE = "workspace"
    OUTSIDE = "outside"


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One thing the tools can do."""

    verb: str
    """The command: `fib validate`."""
    tool: str
    """The MCP tool: `fib_validate_dataset`."""
    function: Callable[..., Result]
    """Takes a Context, then parameters that are annotated with their description, or models; its docstring is the help."""
    phase: int | None
    """The onboarding phase it belongs to, if it is one."""
    effect: Effect
    is_long: bool = False
    """It may take more than a few seconds."""

    def list_options(self) -> tuple[Option, ...]:
        """List what a caller may say; a parameter that is a model gives one option for each of its fields."""
        return tuple(option for parameter in _list_parameters(self.function) for option in _list_options(parameter))

    def run(self, context: Context, values: Mapping[str, Any]) -> Result:
        """Run it with options by name; those left out have their defaults."""
        arguments: dict[str, Any] = {}
        for parameter in _list_parameters(self.function):
            given = {option.name: values[option.name] for option in _list_options(parameter) if option.name in values}
            arguments |= {parameter.name: parameter.annotation(**given)} if _is_group(parameter) else given
        return self.function(context, **arguments)


def _list_parameters(function: Callable[..., Result]) -> list[inspect.Parameter]:
    """List an operation's parameters after the context, with their types resolved."""
    hints = get_type_hints(function, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]
    return [item.replace(annotation=hints[item.name]) for item in own]


def _is_group(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Model)


def _list_options(parameter: inspect.Parameter) -> list[Option]:
    if _is_group(parameter):
        hints = get_type_hints(parameter.annotation)
        return [
            Option(name=name, kind=hints[name], default=field.default, description=field.description or "")
            for name, field in parameter.annotation.model_fields.items()
        ]
    kind, *metadata = get_args(parameter.annotation)
    description = next((item.description or "" for item in metadata if isinstance(item, FieldInfo)), "")
    is_subject = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    return [
        Option(
            name=parameter.name, kind=kind, default=parameter.default, description=description, is_subject=is_subject
        )
    ]


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        verb="onboard",
        tool="fib_onboard_model",
        function=onboard_model,
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="inventory",
        tool="fib_inventory_model",
        function=take_inventory,
        phase=1,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(verb="discover", tool="fib_discover_models", function=discover_models, phase=1, effect=Effect.READ),
    Operation(
        verb="define", tool="fib_define_kernels", function=define_model, phase=2, effect=Effect.WORKSPACE, is_long=True
    ),
    Operation(
        verb="validate",
        tool="fib_validate_dataset",
        function=validate_dataset,
        phase=None,
        effect=Effect.READ,
        is_long=True,
    ),
    Operation(
        verb="clone",
        tool="fib_clone_repos",
        function=clone_repositories,
        phase=0,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(verb="status", tool="fib_show_status", function=show_status, phase=None, effect=Effect.READ),
)


def get_operation(verb: str) -> Operation:
    """Return the operation of a command."""
    return next(operation for operation in OPERATIONS if operation.verb == verb)
