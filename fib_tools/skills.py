"""The slash skills: when to use the tools, in what order, and how to judge what they answer.

A skill is `skills/<name>/SKILL.md`: YAML between two lines of dashes, then Markdown for a model to read.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fib_tools.errors import FormatError, MissingDependencyError, RequestError
from fib_tools.host.files import read_limited
from fib_tools.model.base import Model

__all__ = ["Skill", "get_skill", "list_skills", "load_skill", "skills_folder"]

_ARGUMENTS = "$ARGUMENTS"
_LIMIT = 64 << 10
_FRONTMATTER = re.compile(r"---\n(?P<yaml>.{1,4000}?)\n---\n(?P<body>.*)", re.DOTALL)
_KEYS = ("name", "description", "argument-hint")


class Skill(Model):
    """One slash skill."""

    name: str
    description: str
    """When a model should turn to it; all that stands in its context until then."""
    argument_hint: str
    body: str
    path: Path

    def render(self, arguments: str) -> str:
        """Return the text with what the user typed behind the slash command."""
        return self.body.replace(_ARGUMENTS, arguments)


def skills_folder() -> Path:
    """Return the folder of the skills: the package's own, or the checkout's.

    Raises:
        MissingDependencyError: the installation came without them.
    """
    package = Path(__file__).parent
    for folder in (package / "_skills", package.parent / "skills"):
        if any(folder.glob("*/SKILL.md")):
            return folder
    raise MissingDependencyError(
        "the folder of skills", purpose="a slash command", install="pip install --force-reinstall fib-tools"
    )


def list_skills(folder: Path | None = None) -> tuple[Skill, ...]:
    """List the skills by name.

    Raises:
        MissingDependencyError: the installation came without them.
        FormatError: one of them is malformed.
    """
    return tuple(load_skill(path) for path in sorted((folder or skills_folder()).glob("*/SKILL.md")))


def get_skill(name: str, folder: Path | None = None) -> Skill:
    """Return a skill.

    Raises:
        RequestError: with the names there are, the nearest first.
    """
    skills = {skill.name: skill for skill in list_skills(folder)}
    if name not in skills:
        nearest = get_close_matches(name, skills, n=3)
        ordered = [*nearest, *(known for known in skills if known not in nearest)]
        raise RequestError(f"no skill {name!r}", todo=f"use {', '.join(ordered)}")
    return skills[name]


def load_skill(path: Path) -> Skill:
    """Load one SKILL.md.

    Raises:
        DocumentTooLargeError: over 64 KiB.
        FormatError: no frontmatter, or not the keys that a skill has.
    """
    try:
        text = read_limited(path, _LIMIT).decode()
    except UnicodeDecodeError as error:
        raise FormatError("a skill is not UTF-8", where=str(path), todo="save it as UTF-8") from error
    match = _FRONTMATTER.fullmatch(text)
    if match is None:
        raise FormatError(
            "a skill without frontmatter", where=str(path), todo="begin it with ---, its keys and values, and ---"
        )
    values = _parse_frontmatter(match["yaml"], where=str(path))
    return Skill(
        name=values["name"],
        description=values["description"],
        argument_hint=values["argument-hint"],
        body=match["body"].lstrip("\n"),
        path=path,
    )


def _parse_frontmatter(text: str, *, where: str) -> dict[str, Any]:
    # most commands need no skill, and do without the parser
    import yaml

    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FormatError(f"the frontmatter is not YAML: {error}", where=where, todo="quote its values") from error
    is_plain = isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
    if not is_plain or set(values) != set(_KEYS):
        raise FormatError(
            "the frontmatter has other keys than a skill has",
            where=where,
            todo=f"give it {', '.join(_KEYS)}, each with a text",
        )
    return dict(values)
