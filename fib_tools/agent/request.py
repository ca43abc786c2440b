"""What the user asks of a run, and how one can stand."""

from __future__ import annotations

from enum import Enum

from fib_tools.model.base import Model

__all__ = ["AgentOptions", "AgentRequest", "Status"]


class AgentOptions(Model):
    """How to go about it; what is left out has its default, or on `--resume` what the run has."""

    model: str | None = None
    """The model that works. [default: claude-sonnet-5-5]"""
    skill: str | None = None
    """The skill to follow when the task is no slash command. [default: onboard-model]"""
    max_usd: float | None = None
    """What the run may cost in all, in USD. [default: 2]"""
    max_turns: int | None = None
    """How often the model may answer in all. [default: 60]"""
    max_tokens: int | None = None
    """How long one answer may be. [default: 16000]"""
    usd_per_mtok: str | None = None
    """Price of a model that is not in the table: USD for a million tokens of input and of output, such as 3,15."""
    resume: str | None = None
    """Go on with a run, by its name, or "latest"."""


class AgentRequest(AgentOptions):
    """What the user asks."""

    task: str | None = None
    """What to do, in words or as a slash command: "onboard kimi-k2" or "/validate-dataset"; a resumed run has one."""


class Status(str, Enum):
    """How a run stands."""

    RUNNING = "running"
    """At work, or killed there."""
    DONE = "done"
    BUDGET = "budget"
    TURNS = "turns"
    REFUSED = "refused"
    CONTEXT = "context"
    """The conversation no longer fits the model."""
    INTERRUPTED = "interrupted"
