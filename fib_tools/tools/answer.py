"""What a tool answers: a result cut to what a reader's context can hold, with the way to the rest of it.

A result has one list that is long by nature; its class names it in `rows`, such as `manifest.kernels`.
That list comes in pages; other parts that are too large are left out and named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from fib_tools.model.base import Model, to_document
from fib_tools.model.summary import Result
from fib_tools.tools.job import Job
from fib_tools.tools.wording import reword

__all__ = ["Answer", "Page", "Whole", "cut", "document_size", "take_whole"]

_SUMMARY_SHARE = 4
"""One part in four of the answer goes to the summary at most."""
_SMALLEST_LEFT_OUT = 60
"""Bytes; leaving out less than this saves nothing."""
_PAGING_BYTES = 200
"""Room for the numbers of a page and for names of what was left out."""


class Page(Model):
    """Which part of a result is wanted."""

    limit: Annotated[int, Field(ge=1, le=500)] = 50
    """Rows at most."""
    offset: Annotated[int, Field(ge=0)] = 0
    """Rows to skip: next_offset of the answer before."""
    fields: tuple[str, ...] | None = None
    """Only these parts of the result, as dotted paths that go through lists, such as manifest.kernels.name."""
    max_bytes: Annotated[int, Field(ge=2000, le=64000)] = 8000
    """Length of the answer at most."""


class Answer(Model):
    """A result, or the part of it that was asked for; of a long operation also where it stands."""

    job: Job | None = None
    """The job that a long operation became."""
    jobs: tuple[Job, ...] = ()
    """The newest jobs, when none was named."""
    log: tuple[str, ...] = ()
    """Lines of the job's progress."""
    log_total: int | None = None
    """Lines there are."""
    log_next_offset: int | None = None
    """Where its next lines begin, when it was read from an offset."""
    has_errors: bool | None = None
    """The data has errors: a kernel was refused, a rule is broken. None while there is no result."""
    summary: tuple[str, ...] = ()
    """What a person would be told; the last lines say what came of it."""
    result: dict[str, Any] = Field(default_factory=dict)
    """The document that the command prints with --json, in part."""
    total: int | None = None
    """Rows there are, of those that come in pages."""
    next_offset: int | None = None
    """Where the next page begins; none after the last."""
    left_out: tuple[str, ...] = ()
    """Parts that were too large, with their sizes; ask for one by `fields`, or raise max_bytes."""


class Whole(Model):
    """A result as it is, before it is cut; it can cross a process."""

    has_errors: bool
    lines: tuple[str, ...]
    """The summary's."""
    rows: str
    """The path of the list that comes in pages."""
    row_fields: tuple[str, ...] = ()
    """The fields of its rows that are shown unless others are asked for."""
    document: dict[str, Any]


def take_whole(result: Result) -> Whole:
    """Take what a tool needs of a result."""
    document = to_document(result)
    _reword_advice(document, result)
    return Whole(
        has_errors=result.has_errors,
        lines=() if result.is_text else tuple(map(reword, result.summary().lines)),
        rows=result.rows,
        row_fields=result.row_fields,
        document=document,
    )


def _reword_advice(document: Any, result: Result) -> None:
    """Put the advice of a result, and of results inside of it, into the words of tools, in place."""
    for path in result.advice:
        _reword_at(document, path.split("."))
    for name in type(result).model_fields:
        inner = getattr(result, name)
        if isinstance(inner, Result) and name in document:
            _reword_advice(document[name], inner)


def _reword_at(document: Any, path: Sequence[str]) -> None:
    """Put the texts at a path into the words of tools, in place."""
    name, *rest = path
    for owner in document if isinstance(document, list) else [document]:
        value = owner.get(name)
        if rest and value is not None:
            _reword_at(value, rest)
        elif isinstance(value, str):
            owner[name] = reword(value)


def document_size(value: Any) -> int:
    """Measure a document as bytes of compact JSON."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def cut(whole: Whole, page: Page, *, reserved: int = 0) -> Answer:
    """Cut a result to a page of at most `max_bytes` less those reserved; the whole's document is used up."""
    budget = page.max_bytes - reserved
    summary = _last_lines(whole.lines, budget // _SUMMARY_SHARE)
    document = whole.document
    if page.fields is not None:
        document = _project(document, page.fields)
    rows = _find_rows(document, whole.rows)
    hidden = _shorten_rows(rows or [], whole.row_fields) if page.fields is None else []
    fields = (f"{whole.rows}.{{{','.join(hidden)}}}",) if hidden else ()
    frame = Answer(has_errors=whole.has_errors, summary=summary, left_out=fields)
    room = budget - document_size(to_document(frame)) - _PAGING_BYTES
    cutter = _Cutter(document, [] if rows is None else rows, room)
    count = cutter.fit(page)
    next_offset = page.offset + count
    is_more = rows is not None and next_offset < cutter.total
    return frame.model_copy(
        update={
            "result": document,
            "total": cutter.total if rows is not None else None,
            "next_offset": next_offset if is_more else None,
            "left_out": (*frame.left_out, *cutter.left_out),
        }
    )


def _last_lines(lines: Sequence[str], room: int) -> tuple[str, ...]:
    """Keep the end of a summary, where it says what came of it."""
    kept: list[str] = []
    for line in reversed(lines):
        if document_size([line, *kept]) > room:
            return ("...", *kept) if kept else (f"...{line[-room // 2 :]}",)
        kept.insert(0, line)
    return tuple(kept)


def _project(document: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for field in sorted(fields, key=len, reverse=True):  # a shorter path comes last: it takes in the longer ones
        *steps, last = field.split(".")
        branch = tree
        for step in steps:
            branch = branch.setdefault(step, {})
        branch[last] = {}
    return _pick(document, tree)  # type: ignore[no-any-return]


def _pick(value: Any, tree: Mapping[str, Any]) -> Any:
    if not tree:
        return value
    if isinstance(value, list):
        return [_pick(item, tree) for item in value]
    if isinstance(value, dict):
        return {name: _pick(value[name], branch) for name, branch in tree.items() if name in value}
    return value


def _find_rows(document: Any, path: str) -> list[Any] | None:
    for step in path.split(".") if path else ():
        document = document.get(step) if isinstance(document, dict) else None
    return document if isinstance(document, list) else None


def _shorten_rows(rows: list[Any], fields: Sequence[str]) -> list[str]:
    """Keep these fields of rows, or all if there are none; name those that went."""
    gone: dict[str, None] = {}
    for row in rows if fields else ():
        if not isinstance(row, dict):
            continue
        for name in [name for name in row if name not in fields]:
            del row[name]
            gone[name] = None
    return list(gone)


@dataclass
class _Cutter:
    """Cuts a document in place: rows to a page, then whatever is largest until it fits."""

    document: dict[str, Any]
    rows: list[Any]
    room: int

    def __post_init__(self) -> None:
        self.total = len(self.rows)
        self.left_out: list[str] = []

    def fit(self, page: Page) -> int:
        """Cut to the page, and return how many rows are in it."""
        wanted = self.rows[page.offset : page.offset + page.limit]
        self.rows.clear()
        self._leave_out(self.document, self.room - min(document_size(wanted), self.room // 2))
        free = self.room - document_size([self.document, self.left_out])
        for index, row in enumerate(wanted):
            if index == 0:
                self._leave_out(row, free)
            free -= document_size(row) + 1
            if index and free < 0:
                return index
            self.rows.append(row)
        return len(wanted)

    def _leave_out(self, tree: Any, room: int) -> None:
        """Take the largest parts out of a tree until it fits."""
        while (size := document_size(tree)) > room:
            parts = [part for part in _parts(tree) if part[2] is not self.rows and _SMALLEST_LEFT_OUT < part[3] < size]
            if not parts:
                return
            owner, name, value, length = max(parts, key=lambda part: part[3])
            said = f"{name} ({_describe(value, length)})"
            self.left_out.append(said)
            room -= document_size(said) + 1
            del owner[name.rpartition(".")[2]]


def _parts(tree: Any, prefix: str = "") -> Iterator[tuple[dict[str, Any], str, Any, int]]:
    """List a tree's values that hold no other value by name, with their owners, paths and sizes."""
    if not isinstance(tree, dict):
        return
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and any(isinstance(inner, (dict, list)) for inner in value.values()):
            yield from _parts(value, f"{path}.")
        else:
            yield tree, path, value, document_size(value)


def _describe(value: Any, length: int) -> str:
    return f"{len(value)} items" if isinstance(value, (list, dict)) else f"{length} bytes"
