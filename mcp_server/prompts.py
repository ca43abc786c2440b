"""A prompt for each slash skill, for clients that have no skills of their own."""

from __future__ import annotations

from functools import partial

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.prompts.base import PromptArgument

from fib_tools.skills import Skill, list_skills

__all__ = ["add_prompts"]


def add_prompts(server: MCPServer) -> None:
    """Offer every skill's text, with its arguments filled in."""
    for skill in list_skills():
        server.add_prompt(_prompt(skill))


def _prompt(skill: Skill) -> Prompt:
    argument = PromptArgument(name="arguments", description=skill.argument_hint, required=False)
    return Prompt(
        name=skill.name,
        title=None,
        context_kwarg=None,
        description=skill.description,
        arguments=[argument],
        fn=partial(_render, skill),
    )


def _render(skill: Skill, arguments: str = "", **_unknown: str) -> str:
    return skill.render(arguments)
