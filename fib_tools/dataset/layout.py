"""Where each document of a dataset lives, and what a path means.

definitions/<op_type>/<definition>.json
workloads/<op_type>/<definition>.jsonl
solutions/<author>/<op_type>/<definition>/<solution>.json
traces/<author>/<op_type>/<definition>.jsonl        (before 2026: traces/<op_type>/<definition>.jsonl)
blob/workloads/<op_type>/<definition>/<file>.safetensors
tests/references/test_<definition>.py
evidence/<first two of the key>/<key>.json          (ours: what was seen in an evaluation, by content address)
provenance/<op_type>/<definition>.json              (ours: where a Definition comes from, and who says so)
logs/<op_type>/<definition>/<file>                  (ours: what its reference test said)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath

from fib_tools.host.paths import check_component

__all__ = ["Kind", "Location", "find_location", "format_location"]

_SHARD = 2
"""Characters of a key that name its folder: no folder grows too long to list."""


class Kind(str, Enum):
    """What a file of the dataset holds."""

    DEFINITION = "definition"
    WORKLOADS = "workloads"
    SOLUTION = "solution"
    TRACES = "traces"
    BLOB = "blob"
    TEST = "test"
    EVIDENCE = "evidence"
    PROVENANCE = "provenance"
    LOG = "log"


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A place in the dataset: `str()` gives its path relative to the root."""

    kind: Kind
    definition: str = ""
    """Empty for evidence, whose content says it."""
    op_type: str = ""
    author: str = ""
    """Of a solution or of traces; empty for traces in the old layout."""
    file: str = ""
    """The solution's name, the blob's or log's file name, or the key of evidence."""

    def __str__(self) -> str:
        return format_location(self)


def format_location(location: Location) -> str:
    """Write a location as a path relative to the dataset's root.

    Raises:
        PathError: when one of its names cannot be a file name.
    """
    parts = _parts(location)
    for part in parts:
        check_component(part)
    return "/".join(parts)


def _parts(at: Location) -> tuple[str, ...]:
    if at.kind is Kind.DEFINITION:
        return "definitions", at.op_type, f"{at.definition}.json"
    if at.kind is Kind.WORKLOADS:
        return "workloads", at.op_type, f"{at.definition}.jsonl"
    if at.kind is Kind.SOLUTION:
        return "solutions", at.author, at.op_type, at.definition, f"{at.file}.json"
    if at.kind is Kind.TRACES:
        author = (at.author,) if at.author else ()
        return "traces", *author, at.op_type, f"{at.definition}.jsonl"
    if at.kind is Kind.BLOB:
        return "blob", "workloads", at.op_type, at.definition, at.file
    if at.kind is Kind.EVIDENCE:
        return "evidence", at.file[:_SHARD], f"{at.file}.json"
    if at.kind is Kind.PROVENANCE:
        return "provenance", at.op_type, f"{at.definition}.json"
    if at.kind is Kind.LOG:
        return "logs", at.op_type, at.definition, at.file
    return "tests", "references", f"test_{at.definition}.py"


def find_location(path: str | PurePosixPath) -> Location | None:
    """Say what a path relative to the root holds; None when it is not a place of the layout."""
    parts = PurePosixPath(path).parts
    match parts:
        case ("definitions", op_type, file) if file.endswith(".json"):
            return Location(kind=Kind.DEFINITION, op_type=op_type, definition=file.removesuffix(".json"))
        case ("workloads", op_type, file) if file.endswith(".jsonl"):
            return Location(kind=Kind.WORKLOADS, op_type=op_type, definition=file.removesuffix(".jsonl"))
        case ("solutions", author, op_type, definition, file) if file.endswith(".json"):
            return Location(
                kind=Kind.SOLUTION,
                author=author,
                op_type=op_type,
                definition=definition,
                file=file.removesuffix(".json"),
            )
        case ("traces", author, op_type, file) if file.endswith(".jsonl"):
            return Location(kind=Kind.TRACES, author=author, op_type=op_type, definition=file.removesuffix(".jsonl"))
        case ("traces", op_type, file) if file.endswith(".jsonl"):
            return Location(kind=Kind.TRACES, op_type=op_type, definition=file.removesuffix(".jsonl"))
        case ("blob", "workloads", op_type, definition, file):
            return Location(kind=Kind.BLOB, op_type=op_type, definition=definition, file=file)
        case ("tests", "references", file) if file.startswith("test_") and file.endswith(".py"):
            return Location(kind=Kind.TEST, definition=file.removeprefix("test_").removesuffix(".py"))
    return _find_ours(parts)


def _find_ours(parts: tuple[str, ...]) -> Location | None:
    """Say what a path of those holds that other tools do not know."""
    match parts:
        case ("evidence", shard, file) if file.endswith(".json") and file[:_SHARD] == shard:
            return Location(kind=Kind.EVIDENCE, file=file.removesuffix(".json"))
        case ("provenance", op_type, file) if file.endswith(".json"):
            return Location(kind=Kind.PROVENANCE, op_type=op_type, definition=file.removesuffix(".json"))
        case ("logs", op_type, definition, file):
            return Location(kind=Kind.LOG, op_type=op_type, definition=definition, file=file)
    return None
