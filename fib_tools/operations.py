"""The one list of what the tools can do; command line, MCP server, headless agent and documents all read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from fib_tools.model.summary import Result
from fib_tools.phases.define import define_model
from fib_tools.phases.discover import discover_models
from fib_tools.phases.inventory import take_inventory
from fib_tools.phases.onboard import onboard_model
from fib_tools.phases.refresh import clone_repositories
from fib_tools.phases.status import show_status
from fib_tools.phases.validate import validate_dataset

__all__ = ["OPERATIONS", "Effect", "Operation", "get_operation"]


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
    """Takes a Context, then typed parameters; its docstring is the help text."""
    phase: int | None
    """The onboarding phase it belongs to, if it is one."""
    effect: Effect
    is_long: bool = False
    """It may take more than a few seconds."""


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
