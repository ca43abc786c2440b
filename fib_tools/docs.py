"""What is generated for readers: tables in the documents, and JSON schemas.

python -m fib_tools.docs README.md           write its tables anew
python -m fib_tools.docs --schemas FOLDER    write a JSON schema for each kind of document
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from fib_tools.checks.dataset import FAMILIES
from fib_tools.errors import FormatError
from fib_tools.host.files import storage_errors, write_atomically
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.schema import DOCUMENTS, json_schema
from fib_tools.op_types.registry import list_op_types
from fib_tools.operations import OPERATIONS, Effect

__all__ = ["TABLES", "main", "render_document", "write_schemas"]

_BLOCK = re.compile(r"<!-- (?P<name>[a-z]+): generated, do not edit -->\n.*?<!-- /(?P=name) -->", re.DOTALL)


_WRITES = {Effect.READ: "nothing", Effect.WORKSPACE: "the workspace", Effect.OUTSIDE: "the outside"}


def _commands() -> str:
    rows = [
        f"| `fib {entry.verb}` | {_first_line(entry.function)} | {_WRITES[entry.effect]} | `{entry.tool}` |"
        for entry in OPERATIONS
    ]
    return "\n".join(["| Command | What it does | Writes to | MCP tool |", "|---|---|---|---|", *rows])


def _first_line(function: Callable[..., object]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _checks() -> str:
    rows = [f"| `{rule.id}` | {rule.severity.value} | {rule.summary} |" for family in FAMILIES for rule in family.rules]
    return "\n".join(["| Rule | Severity | What it finds |", "|---|---|---|", *rows])


def _optypes() -> str:
    rows = [
        f"| `{entry.name}` | {', '.join(f'`{kernel.id}`' for kernel in entry.kernels)} |" for entry in list_op_types()
    ]
    return "\n".join(["| op_type | Kernel types |", "|---|---|", *rows])


TABLES: dict[str, Callable[[], str]] = {"checks": _checks, "commands": _commands, "optypes": _optypes}
"""By the name that a document's markers carry."""


def render_document(text: str) -> str:
    """Fill every generated block of a document.

    Raises:
        FormatError: when a block has a name that no table has.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise FormatError(f"no generated table {name!r}", todo=f"use one of {', '.join(TABLES)}")
        return f"<!-- {name}: generated, do not edit -->\n{TABLES[name]()}\n<!-- /{name} -->"

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
    for path in map(Path, arguments):
        write_atomically(path, render_document(path.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
