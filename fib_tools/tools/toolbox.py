"""The tools that agents are offered: one for each of OPERATIONS, and two for the jobs that long ones become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fib_tools.errors import FibError, RequestError
from fib_tools.operation import Effect, read_arguments
from fib_tools.operations import OPERATIONS
from fib_tools.phases.context import Context, Progress, be_silent
from fib_tools.tools.answer import Answer, document_size
from fib_tools.tools.desk import Desk
from fib_tools.tools.job_tools import build_job_tools
from fib_tools.tools.operation_tools import build_operation_tool
from fib_tools.tools.tool import Caller
from fib_tools.tools.wording import reword_error

__all__ = ["Toolbox"]

_ARGUMENT_BYTES = 2 << 20
"""A Definition may have 1 MB."""


class Toolbox:
    """The tools over one workspace; safe to call from several threads."""

    def __init__(self, context: Context, *, allow_submit: bool = False) -> None:
        desk = Desk(context)
        mine = [entry for entry in OPERATIONS if entry.tool]
        offered = [entry for entry in mine if allow_submit or entry.effect is not Effect.OUTSIDE]
        own = tuple(build_operation_tool(operation, desk) for operation in offered)
        self.tools = (*own, *build_job_tools(desk, {tool.name: tool.output_schema for tool in own}))
        self._by_name = {tool.name: tool for tool in self.tools}

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        progress: Progress = be_silent,
        is_there: Callable[[], bool] | None = None,
    ) -> Answer:
        """Call a tool; an argument that is null counts as left out. A caller that is not there is waited for no longer.

        Raises:
            FibError: there is no such tool, its arguments are wrong, or the request cannot be served.
        """
        tool = self._by_name.get(name)
        if tool is None:
            raise RequestError(f"there is no tool {name[:80]!r}", todo=f"use {', '.join(self._by_name)}")
        said = {key: value for key, value in arguments.items() if value is not None}
        if document_size(said) > _ARGUMENT_BYTES:
            raise RequestError(
                f"the arguments have more than {_ARGUMENT_BYTES} bytes", todo="send less, or a file's path"
            )
        caller = Caller(progress=progress) if is_there is None else Caller(progress=progress, is_there=is_there)
        try:
            return tool.run(read_arguments(tool.arguments, said), caller)
        except FibError as error:
            raise reword_error(error)  # noqa: B904  # the same error
