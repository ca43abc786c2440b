"""A bench for the headless agent: a toolbox whose answers depend on their arguments alone, and a scripted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fib_tools.agent.loop import run_agent
from fib_tools.agent.request import AgentRequest
from fib_tools.agent.result import AgentResult
from fib_tools.errors import RequestError
from fib_tools.model.base import Model
from fib_tools.phases.context import Progress
from scripted_anthropic import Script, ScriptedAnthropic

__all__ = ["KEY", "Bench", "FakeTool", "FakeToolbox"]

KEY = "sk-test-0123456789-never-to-be-seen"


@dataclass(frozen=True)
class FakeTool:
    name: str
    description: str
    input_schema: Mapping[str, Any]


class Answer(Model):
    state: str
    echo: dict[str, Any]


@dataclass
class FakeToolbox:
    """Two tools whose answers depend on their arguments alone."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    behave: Callable[[str, Mapping[str, Any]], None] = lambda _name, _arguments: None
    tools: tuple[FakeTool, ...] = (
        FakeTool(
            "fib_onboard_model",
            "Onboard a model.",
            {
                "type": "object",
                "properties": {"model": {"type": "string"}, "wait_seconds": {"type": "integer", "maximum": 50}},
            },
        ),
        FakeTool("fib_show_status", "Show the status.", {"type": "object", "properties": {}}),
    )

    def call(self, name: str, arguments: Mapping[str, Any], *, progress: Progress) -> Answer:
        self.calls.append((name, dict(arguments)))
        progress(f"working on {name}", 1, 2)
        if not {*arguments} <= {"model", "wait_seconds"}:
            raise RequestError(f"unknown arguments {sorted(arguments)}", where=name, todo="leave them out")
        self.behave(name, arguments)
        return Answer(state="done", echo=dict(arguments))


@dataclass
class Bench:
    """Runs the agent against a script, without waiting."""

    jobs: Path
    monkeypatch: pytest.MonkeyPatch
    toolbox: FakeToolbox = field(default_factory=FakeToolbox)
    waits: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def run(self, script: Script, task: str | None = "onboard kimi-k2", **request: Any) -> AgentResult:
        with ScriptedAnthropic(script) as server:
            self.monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
            self.requests, self.headers = server.requests, server.headers
            return run_agent(
                self.toolbox,
                AgentRequest(task=task, **request),
                jobs=self.jobs,
                progress=lambda step, _done, _total: self.told.append(step),
                sleep=self.waits.append,
            )
