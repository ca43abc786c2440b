"""The tool step: every call of the model gets an answer, and no answer of a tool can end the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fib_tools.errors import FibError, RequestError
from fib_tools.host.env import redact
from fib_tools.llm.transcript import Message
from fib_tools.model.base import Model, to_document
from fib_tools.model.canonical import format_line
from fib_tools.phases.context import Progress
from fib_tools.skills import get_skill
from fib_tools.tools.job import Failure

__all__ = ["READ_SKILL", "Tool", "Toolbox", "answer_calls", "list_tools"]

READ_SKILL = "fib_read_skill"

_READ_SKILL_TOOL: dict[str, Any] = {
    "name": READ_SKILL,
    "description": "Read the text of another skill: when to use which tools, in what order, and how to judge.",
    "input_schema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "The skill's name, such as validate-dataset."},
            "arguments": {"type": "string", "description": "What stands behind the slash command.", "default": ""},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
}

_WAIT = "wait_seconds"


class Tool(Protocol):
    """What the agent needs to know of a tool."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def description(self) -> str:
        """What it does."""

    @property
    def input_schema(self) -> Mapping[str, Any]:
        """Its arguments, as a JSON schema."""


class Toolbox(Protocol):
    """The tools, those that write outside among them only when that was allowed."""

    @property
    def tools(self) -> Sequence[Tool]:
        """All that can be called."""

    def call(self, name: str, arguments: Mapping[str, Any], *, progress: Progress) -> Model:
        """Call one; a FibError says what to do instead."""


def list_tools(toolbox: Toolbox) -> list[dict[str, Any]]:
    """List what the model is offered, in a fixed order, which the cache needs."""
    offered = [
        {"name": tool.name, "description": tool.description, "input_schema": dict(tool.input_schema)}
        for tool in sorted(toolbox.tools, key=lambda tool: tool.name)
    ]
    return [*offered, _READ_SKILL_TOOL]


def answer_calls(toolbox: Toolbox, message: Message, *, progress: Progress) -> tuple[dict[str, Any], ...]:
    """Run the tool calls of a message, one after the other, and return a result block for each."""
    return tuple(
        _answer(toolbox, call, message.malformed.get(call["id"]), progress=progress) for call in message.tool_calls
    )


def _answer(toolbox: Toolbox, call: Mapping[str, Any], fault: str | None, *, progress: Progress) -> dict[str, Any]:
    name = str(call["name"])
    try:
        _refuse_malformed(name, fault)
        text = _run(toolbox, name, call["input"], progress=progress)
    except FibError as error:
        return _result(call, _describe(error), is_error=True)
    except Exception as error:  # noqa: BLE001  a face: a defect of one tool must not cost the whole run
        broken = FibError(f"the tool broke: {type(error).__name__}: {error}", where=name, todo="go on without it")
        progress(f"{name}: {redact(broken.what)}", 0, 0)
        return _result(call, _describe(broken), is_error=True)
    return _result(call, text)


def _refuse_malformed(name: str, fault: str | None) -> None:
    if fault:
        raise RequestError(fault, where=name, todo="send the call again with one complete JSON object")


def _run(toolbox: Toolbox, name: str, arguments: Mapping[str, Any], *, progress: Progress) -> str:
    if name == READ_SKILL:
        return _read_skill(arguments)
    tool = next((tool for tool in toolbox.tools if tool.name == name), None)
    if tool is None:
        names = ", ".join(tool["name"] for tool in list_tools(toolbox))
        raise RequestError(f"no tool {name!r}", where="tools", todo=f"call one of {names}")
    return format_line(to_document(toolbox.call(name, _wait_for_long(tool, arguments), progress=progress)))


def _wait_for_long(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Wait as long as the tool can when the model did not say: each question about a job is a turn that costs."""
    wait = tool.input_schema.get("properties", {}).get(_WAIT)
    longest = wait.get("maximum") if isinstance(wait, Mapping) else None
    return {**({} if longest is None else {_WAIT: longest}), **arguments}


def _read_skill(arguments: Mapping[str, Any]) -> str:
    name, given = arguments.get("name"), arguments.get("arguments", "")
    if not isinstance(name, str) or not isinstance(given, str):
        raise RequestError(f"{name!r} is not the name of a skill", where=READ_SKILL, todo="pass a skill's name as text")
    return get_skill(name).render(given)


def _describe(error: FibError) -> str:
    return json.dumps(Failure.of(error).model_dump(), ensure_ascii=False)


def _result(call: Mapping[str, Any], text: str, *, is_error: bool = False) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": call["id"], "content": redact(text) or "{}"}
    return {**block, "is_error": True} if is_error else block
