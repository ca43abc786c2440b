"""What is generated for readers: tables in the documents, and JSON schemas.

python -m fib_tools.docs [FILE...]           write their tables anew; those of the README and of all skills if none is named
python -m fib_tools.docs --schemas FOLDER    write a JSON schema for each kind of document
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from fib_tools.checks.dataset import FAMILIES
from fib_tools.errors import FormatError
from fib_tools.evaluate.rules.rules import RULES, Look
from fib_tools.host.files import storage_errors, write_atomically
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.schema import DOCUMENTS, json_schema
from fib_tools.op_types.registry import list_op_types
from fib_tools.operation import Effect
from fib_tools.operations import JOB_TOOLS, OPERATIONS
from fib_tools.skills import list_skills

__all__ = ["TABLES", "find_tools", "main", "render_document", "write_schemas"]

_ROOT = Path(__file__).parents[1]
_TOOL = re.compile(r"`(fib_[a-z0-9_]+)`")
_BLOCK = re.compile(r"<!-- (?P<name>[a-z]+): generated, do not edit -->\n.*?<!-- /(?P=name) -->", re.DOTALL)


_WRITES = {Effect.READ: "nothing", Effect.WORKSPACE: "the workspace", Effect.OUTSIDE: "the outside"}


def find_tools(text: str) -> tuple[str, ...]:
    """Find the tools that a document's own words name, in backticks; its generated tables do not count."""
    return tuple(dict.fromkeys(_TOOL.findall(_BLOCK.sub("", text))))


def _commands(_text: str) -> str:
    rows = [
        f"| `fib {entry.verb}` | {_first_line(entry.function)} | {_WRITES[entry.effect]} | {f'`{entry.tool}`' if entry.tool else ''} |"
        for entry in OPERATIONS
    ]
    return "\n".join(["| Command | What it does | Writes to | MCP tool |", "|---|---|---|---|", *rows])


def _first_line(function: Callable[..., object]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _tools(text: str) -> str:
    known = {entry.tool: (_first_line(entry.function), entry.effect) for entry in OPERATIONS if entry.tool}
    known |= {name: (description, effect) for name, description, effect in JOB_TOOLS}
    named = find_tools(text)
    for name in named:
        if name not in known:
            nearest = get_close_matches(name, known, n=1, cutoff=0)[0]
            raise FormatError(f"no tool {name!r}", todo=f"name one there is, such as {nearest}")
    rows = [
        f"| `{name}` | {description} | {_WRITES[effect]} |"
        for name, (description, effect) in known.items()
        if name in named
    ]
    return "\n".join(["| Tool | What it does | Writes to |", "|---|---|---|", *rows])


def _skills(_text: str) -> str:
    rows = [f"| `/{skill.name}` | {_occasion(skill.description)} |" for skill in list_skills()]
    return "\n".join(["| Skill | When |", "|---|---|", *rows])


def _occasion(description: str) -> str:
    """Take the first sentence of a description, without the words that every one begins with."""
    return description.partition(". ")[0].removesuffix(".").removeprefix("Use when ")


def _checks(_text: str) -> str:
    rows = [f"| `{rule.id}` | {rule.severity.value} | {rule.summary} |" for family in FAMILIES for rule in family.rules]
    return "\n".join(["| Rule | Severity | What it finds |", "|---|---|---|", *rows])


def _optypes(_text: str) -> str:
    rows = [
        f"| `{entry.name}` | {', '.join(f'`{kernel.id}`' for kernel in entry.kernels)} |" for entry in list_op_types()
    ]
    return "\n".join(["| op_type | Kernel types |", "|---|---|", *rows])


def _rules(_text: str) -> str:
    where = {Look.SOURCE: "the sources", Look.CHILD: "the Solution's process", Look.JUDGE: "the judge"}
    rows = [f"| `{rule.name}` | {where[rule.look]} | {rule.forbids} |" for rule in RULES.values()]
    return "\n".join(["| Rule | Seen in | A Solution is rejected that |", "|---|---|---|", *rows])


TABLES: dict[str, Callable[[str], str]] = {
    "checks": _checks,
    "commands": _commands,
    "optypes": _optypes,
    "rules": _rules,
    "skills": _skills,
    "tools": _tools,
}
"""By the name that a document's markers carry; each is given the whole document."""


def render_document(text: str) -> str:
    """Fill every generated block of a document.

    Raises:
        FormatError: when a block has a name that no table has, or the document names a tool that there is not.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise FormatError(f"no generated table {name!r}", todo=f"use one of {', '.join(TABLES)}")
        return f"<!-- {name}: generated, do not edit -->\n{TABLES[name](text)}\n<!-- /{name} -->"

    return _BLOCK.sub(fill, text)


def write_schemas(folder: Path) -> None:
    """Write one JSON schema a document into a folder."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in DOCUMENTS:
        write_atomically(folder / f"{name}.schema.json", canonical_bytes(json_schema(name)))


def main(arguments: list[str]) -> None:
    """Write the generated blocks of documents anew, or the schemas."""
    if arguments[:1] == ["--schemas"]:
        write_schemas(Path(arguments[1]))
        return
    named = [Path(argument) for argument in arguments]
    for path in named or [_ROOT / "README.md", *sorted(_ROOT.glob("skills/*/SKILL.md"))]:
        write_atomically(path, render_document(path.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
