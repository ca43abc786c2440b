"""One tool for each operation."""

from __future__ import annotations

import inspect
from typing import Annotated

from pydantic import BaseModel, Field

from fib_tools.model.base import Model
from fib_tools.operation import Operation, build_arguments, list_fields
from fib_tools.tools.answer import Answer, Page
from fib_tools.tools.desk import Desk
from fib_tools.tools.schemas import answer_schema, arguments_schema, check_fields
from fib_tools.tools.tool import Caller, Tool
from fib_tools.tools.wording import describe_tool

__all__ = ["LONGEST_WAIT", "build_operation_tool"]

LONGEST_WAIT = 50
"""Seconds; MCP clients give up on a call after a minute."""


class _Wait(Model):
    wait_seconds: Annotated[float, Field(ge=0, le=LONGEST_WAIT)] = 0
    """Seconds to wait for the result; when they are over, or with 0 at once, the answer is a job_id for fib_get_job."""


def build_operation_tool(operation: Operation, desk: Desk) -> Tool:
    """Build the tool of an operation."""
    own = operation.list_options_for_agents()
    options = (*own, *(list_fields(_Wait) if operation.is_long else ()), *list_fields(Page))
    arguments = build_arguments(operation.tool, options)
    output_schema = answer_schema(operation.result)

    def run(given: BaseModel, caller: Caller) -> Answer:
        said = given.model_dump(include={option.name for option in own} & given.model_fields_set, mode="json")
        page = Page(**{name: getattr(given, name) for name in Page.model_fields})
        check_fields(output_schema, page.fields or ())
        if not operation.is_long:
            return desk.run(operation, said, page, caller)
        job_id = desk.start(operation, said)
        desk.watch(job_id, given.wait_seconds, caller)  # type: ignore[attr-defined]
        return desk.result(job_id, page)

    return Tool(
        name=operation.tool,
        description=describe_tool(inspect.getdoc(operation.function) or ""),
        effect=operation.effect,
        is_open_world=operation.is_open_world,
        is_long=operation.is_long,
        arguments=arguments,
        input_schema=arguments_schema(arguments),
        output_schema=output_schema,
        run=run,
    )
