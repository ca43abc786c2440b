"""The tools for jobs: where one stands, with its log and result, and an end to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from fib_tools.model.base import Model, ModelT
from fib_tools.operation import build_arguments, list_fields
from fib_tools.operations import JOB_TOOLS
from fib_tools.tools.answer import Answer, Page
from fib_tools.tools.desk import Desk, JobLog
from fib_tools.tools.operation_tools import LONGEST_WAIT
from fib_tools.tools.schemas import answer_schema, arguments_schema, check_fields
from fib_tools.tools.tool import Caller, Tool

__all__ = ["build_job_tools"]


class _Which(Model):
    job_id: str | None = None
    """The job; the newest ones are listed if left out."""
    wait_seconds: Annotated[float, Field(ge=0, le=LONGEST_WAIT)] = 20
    """Seconds to wait for its end."""


class _One(Model):
    job_id: str
    """The job."""


def build_job_tools(desk: Desk, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Build the tools for jobs; `schemas` has the answers of the tools that jobs are of."""

    def get(given: BaseModel, caller: Caller) -> Answer:
        which, page = _narrow(_Which, given), _narrow(Page, given)
        if which.job_id is None:
            return desk.list_jobs(page)
        schema = schemas.get(desk.jobs.get(which.job_id).tool)
        if schema is not None:
            check_fields(schema, page.fields or ())
        desk.watch(which.job_id, which.wait_seconds, caller)
        return desk.show(which.job_id, page, _narrow(JobLog, given))

    def cancel(given: BaseModel, _caller: Caller) -> Answer:
        return Answer(job=desk.jobs.cancel(_narrow(_One, given).job_id))

    return (_tool("fib_get_job", (_Which, JobLog, Page), get), _tool("fib_cancel_job", (_One,), cancel))


def _narrow(kind: type[ModelT], given: BaseModel) -> ModelT:
    return kind(**{name: getattr(given, name) for name in kind.model_fields})


def _tool(name: str, groups: tuple[type[Model], ...], run: Callable[[BaseModel, Caller], Answer]) -> Tool:
    description, effect = next((text, effect) for known, text, effect in JOB_TOOLS if known == name)
    arguments = build_arguments(name, (option for group in groups for option in list_fields(group)))
    return Tool(
        name=name,
        description=description,
        effect=effect,
        is_open_world=False,
        is_long=False,
        arguments=arguments,
        input_schema=arguments_schema(arguments),
        output_schema=answer_schema(None),
        run=run,
    )
