"""The tools that agents are offered: one for each of OPERATIONS, and two for the jobs that long ones become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.errors import RequestError
from fib_tools.operation import Effect, read_arguments
from fib_tools.operations import OPERATIONS
from fib_tools.phases.context import Context, Progress, be_silent
from fib_tools.tools.answer import Answer
from fib_tools.tools.desk import Desk
from fib_tools.tools.job_tools import build_job_tools
from fib_tools.tools.operation_tools import build_operation_tool

__all__ = ["Toolbox"]


class Toolbox:
    """The tools over one workspace; safe to call from several threads."""

    def __init__(self, context: Context, *, allow_submit: bool = False) -> None:
        desk = Desk(context)
        offered = [entry for entry in OPERATIONS if allow_submit or entry.effect is not Effect.OUTSIDE]
        self.tools = (*(build_operation_tool(operation, desk) for operation in offered), *build_job_tools(desk))
        self._by_name = {tool.name: tool for tool in self.tools}

    def call(self, name: str, arguments: Mapping[str, Any], *, progress: Progress = be_silent) -> Answer:
        """Call a tool; an argument that is null counts as left out.

        Raises:
            FibError: there is no such tool, its arguments are wrong, or the request cannot be served.
        """
        tool = self._by_name.get(name)
        if tool is None:
            raise RequestError(f"there is no tool {name!r}", todo=f"use {', '.join(self._by_name)}")
        said = {key: value for key, value in arguments.items() if value is not None}
        return tool.run(read_arguments(tool.arguments, said), progress)
