"""`fib agent`: a model at work with the tools, without a person."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fib_tools.agent.request import AgentOptions, AgentRequest
from fib_tools.model.summary import Result
from fib_tools.phases.context import Context
from fib_tools.phases.request import ALLOW_SUBMIT

__all__ = ["work"]

_DEFAULTS = AgentOptions()


def work(
    context: Context,
    task: Annotated[
        str | None,
        Field(description='What to do: "onboard kimi-k2", or a slash command such as "/validate-dataset".'),
    ] = None,
    options: AgentOptions = _DEFAULTS,
    *,
    allow_submit: Annotated[bool, Field(description=ALLOW_SUBMIT)] = False,
) -> Result:
    """Let a model work on a task with the tools, without a person; needs ANTHROPIC_API_KEY.

    The model is asked over the network with --offline too, which speaks of sources of facts.
    """
    # the tools and the model's client take half a second, and other commands can do without them
    from fib_tools.agent.loop import run_agent
    from fib_tools.tools.toolbox import Toolbox

    return run_agent(
        Toolbox(context, allow_submit=allow_submit),
        AgentRequest(task=task, **options.model_dump()),
        jobs=context.workspace.root / "jobs",
        progress=context.progress,
    )
