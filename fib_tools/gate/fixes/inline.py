"""References that use names their dump does not define."""

from __future__ import annotations

import ast

from fib_tools.gate.fixes.draft import Draft, RefusedError
from fib_tools.gate.fixes.library import Collected, Library
from fib_tools.gate.fixes.source import find_undefined, last_import_line, parse_module, read_function

__all__ = ["complete", "inline_helpers"]

_MAX_ROUNDS = 5


def inline_helpers(draft: Draft, library: Library | None) -> None:
    """Write the helpers and imports that a reference needs into it, and those of its `init` where they are known.

    Raises:
        RefusedError: when they are not to be found in a FlashInfer with the same reference.
    """
    draft.reference, names = complete(draft.reference, library, what="reference")
    if names:
        draft.change(f"reference: {', '.join(names)} written in from FlashInfer {library.version if library else ''}")
    init = draft.extra.get("init")
    if isinstance(init, str):
        try:
            draft.extra["init"], _ = complete(init, library, what="init", may_import=True)
        except RefusedError as refusal:
            draft.change(f"init left as it is: {refusal}")


def complete(
    source: str, library: Library | None, *, what: str, may_import: bool = False
) -> tuple[str, tuple[str, ...]]:
    """Return a source with all it uses written in, and the names that were; unchanged when nothing is missing.

    Raises:
        RefusedError: when a name is not to be found, or only in another version.
    """
    imported = [] if may_import else _flashinfer_imports(source)
    undefined = find_undefined(source)
    if not undefined and not imported:
        return source, ()
    wanted = ", ".join((*undefined, *(alias.name for _, alias in imported)))
    if library is None:
        raise RefusedError(f"the {what} uses {wanted}, and no FlashInfer is installed to look it up in")
    function = read_function(source)
    home = library.find_home(function.name, source)
    if home is None:
        raise RefusedError(f"the {what} uses {wanted}, and FlashInfer {library.version} has another {function.name}")
    collected = Collected()
    library.collect(undefined, home, collected)
    source = _splice(source, collected)
    if not may_import:
        source = _settle_imports(source, library, collected)
    return source, tuple(collected.names)


def _settle_imports(source: str, library: Library, collected: Collected) -> str:
    """Write in what a source imports from FlashInfer, and what that imports in turn."""
    for _ in range(_MAX_ROUNDS):
        imported = _flashinfer_imports(source)
        if not imported:
            return source
        more = Collected()
        more.seen = set(collected.seen)
        for node, alias in imported:
            library.collect((alias.name,), node.module or "flashinfer", more)
            if alias.asname:
                more.blocks.append(f"{alias.asname} = {alias.name}")
        source = _splice(_without_imports(source), more)
        collected.seen |= more.seen
        collected.names += more.names
    raise RefusedError("the helpers of the reference import FlashInfer without end")


def _flashinfer_imports(source: str) -> list[tuple[ast.ImportFrom, ast.alias]]:
    found = []
    for node in ast.walk(parse_module(source)):
        if isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == "flashinfer" for alias in node.names):
            raise RefusedError("the reference imports flashinfer as a module")
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flashinfer":
            found += [(node, alias) for alias in node.names]
    return found


def _without_imports(source: str) -> str:
    """Blank out imports from FlashInfer, keeping every other line where it is."""
    lines = source.splitlines()
    for node, _ in _flashinfer_imports(source):
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
        lines[node.lineno - 1] = " " * node.col_offset + "pass"
    return "\n".join(lines) + "\n"


def _splice(source: str, collected: Collected) -> str:
    """Put imports and helpers after the leading imports, since default values are evaluated as a function is defined."""
    lines = source.splitlines()
    line = last_import_line(source)
    head, tail = lines[:line], lines[line:]
    missing = [text for text in collected.imports if text not in head]
    return "\n".join([*head, *missing, "", *("\n\n" + block for block in collected.blocks), "", *tail]) + "\n"
