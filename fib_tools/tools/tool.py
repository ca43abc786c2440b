"""What a tool is: what a model is told of it, and what happens when it calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from fib_tools.operation import Effect
from fib_tools.phases.context import Progress, be_silent
from fib_tools.tools.answer import Answer

__all__ = ["Caller", "Tool"]


def _stays() -> bool:
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who waits for an answer."""

    progress: Progress = be_silent
    is_there: Callable[[], bool] = _stays
    """Asked now and then during a long wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A tool as agents are offered it."""

    name: str
    description: str
    effect: Effect
    is_open_world: bool
    """It may read from the network."""
    is_long: bool
    """It becomes a job, and takes `wait_seconds`."""
    arguments: type[BaseModel]
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    run: Callable[[BaseModel, Caller], Answer]
    """Called with arguments of its class."""
