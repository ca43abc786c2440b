"""The models of FlashInfer-Bench's web page: entries added to `web/apps/web/data/models.ts`, all others left as they are.

Published type (flashinfer-bench 0.1.2, `web/apps/web/lib/schemas/model.ts`):

    { id: string, name: string, description?: string,
      modules: Record<string, { count: number, parent?: string, type: "block" | "layer", definitions?: string[] }> }

An entry of ours begins with a mark that holds a checksum of the rest. Once edited by hand, it is a hand-written one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from fib_tools.errors import FormatError
from fib_tools.model.base import Model, NonEmpty
from fib_tools.publish.models_ts_reading import ModelsList, WrittenEntry, checksum, read_models
from fib_tools.publish.typescript import format_string, tokenize

__all__ = ["EMPTY_MODELS", "EntryModule", "EntryOutcome", "ModelEntry", "UpdatedModels", "update_models"]

EntryOutcome = Literal["added", "updated", "unchanged", "kept"]
"""What became of a model's entry; kept: the one there was written, or edited, by hand."""

EMPTY_MODELS = """\
import type { Model } from "@/lib/schemas"

const models: Model[] = [
] satisfies Model[]

export default models
"""
_REMARK = "written by that command, which writes it anew until somebody edits it"
_BARE = re.compile(r"[A-Za-z_$][\w$]*", re.ASCII)
_WIDTH = 100


class EntryModule(Model):
    """A module as the page shows it."""

    key: NonEmpty
    count: int
    parent: str | None = None
    type: Literal["block", "layer"]
    definitions: tuple[str, ...] = ()


class ModelEntry(Model):
    """A model as the page shows it."""

    id: NonEmpty
    name: NonEmpty
    description: str
    modules: tuple[EntryModule, ...]
    remarks: tuple[str, ...] = ()
    """Comments: where it comes from."""


class UpdatedModels(NamedTuple):
    """The new text, what became of each entry by id, and the entries that are not ours."""

    text: str
    outcomes: dict[str, EntryOutcome]
    hand_written: tuple[WrittenEntry, ...]


def update_models(text: str, entries: Sequence[ModelEntry], *, where: str) -> UpdatedModels:
    """Write these entries into the list: own ones are replaced, new ones come last; not a byte of any other changes.

    Raises:
        FormatError: the list cannot be found or read with certainty, or an entry cannot be one of it.
    """
    read = read_models(text, where=where)
    newline = "\r\n" if "\r\n" in text else "\n"
    outcomes: dict[str, EntryOutcome] = {}
    changes: list[tuple[int, int, str]] = []
    added: list[str] = []
    for entry in entries:
        lines = list(_list_lines(entry))
        own = checksum(list(tokenize("\n".join(lines), where=entry.id)))
        body = newline.join(("{", f"    // fib pages: {own}, {_REMARK}", *lines, "  }"))
        standing = _find_standing(read, entry.id, where)
        if standing is None:
            outcomes[entry.id] = "added"
            added.append(f"{newline}  {body},")
        elif not standing.is_intact:
            outcomes[entry.id] = "kept"
        elif standing.checksum == own:
            outcomes[entry.id] = "unchanged"
        else:
            outcomes[entry.id] = "updated"
            changes.append((standing.start, standing.end, body))
    if added:
        if read.needs_comma:
            changes.append((read.comma_at, read.comma_at, ","))
        end = "" if text[read.last :].startswith(("\n", "\r")) else newline
        changes.append((read.last, read.last, "".join(added) + end))
    hand_written = tuple(entry for entry in read.entries if not entry.is_intact)
    return UpdatedModels(_replace(text, changes), outcomes, hand_written)


def _find_standing(read: ModelsList, name: str, where: str) -> WrittenEntry | None:
    found = [entry for entry in read.entries if entry.id == name]
    if len(found) > 1:
        lines = ", ".join(str(entry.line) for entry in found)
        raise FormatError(f"{name!r} is there twice", where=f"{where}, lines {lines}", todo="remove one of them")
    return found[0] if found else None


def _replace(text: str, changes: Sequence[tuple[int, int, str]]) -> str:
    pieces, at = [], 0
    for start, end, new in sorted(changes, key=lambda change: change[:2]):
        pieces += [text[at:start], new]
        at = end
    return "".join([*pieces, text[at:]])


def _list_lines(entry: ModelEntry) -> Iterator[str]:
    """List an entry's lines as the list's own formatter leaves them, without the mark that comes first.

    Raises:
        FormatError: a module's name would not be a property of its own.
    """
    yield from (f"    // {format_string(remark)[1:-1]}" for remark in entry.remarks)
    yield f"    id: {format_string(entry.id)},"
    yield f"    name: {format_string(entry.name)},"
    line = f"    description: {format_string(entry.description)},"
    yield from (line,) if len(line) <= _WIDTH else ("    description:", f"      {format_string(entry.description)},")
    yield "    modules: {"
    for module in entry.modules:
        if module.key == "__proto__":
            raise FormatError("a module is called '__proto__'", where=entry.id, todo="check the model's config")
        yield f"      {module.key if _BARE.fullmatch(module.key) else format_string(module.key)}: {{"
        yield f"        count: {module.count},"
        if module.parent is not None:
            yield f"        parent: {format_string(module.parent)},"
        yield f"        type: {format_string(module.type)},"
        yield from _list_definitions(module.definitions)
        yield "      },"
    yield "    },"


def _list_definitions(names: Sequence[str]) -> Iterator[str]:
    line = f"        definitions: [{', '.join(map(format_string, names))}],"
    if len(line) <= _WIDTH:
        yield line
        return
    yield "        definitions: ["
    yield from (f"          {format_string(name)}," for name in names)
    yield "        ],"
