"""What a dataset holds, Definition by Definition; what has not changed since the last look is not read again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fib_tools.dataset.layout import Kind, Location
from fib_tools.dataset.store import Dataset, StoredFile
from fib_tools.errors import FibError
from fib_tools.model.definition import Definition
from fib_tools.model.tags import find_tag_values

__all__ = ["Catalogue", "Contents", "Entry"]

Value = TypeVar("Value")
_FOLDERS = ("definitions", "workloads", "solutions", "traces")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A Definition, and what there is beside it."""

    definition: Definition
    at: Location
    """Where its file stands; it names the pages, whatever the document says."""
    workloads: int = 0
    evaluations: int = 0
    solutions: tuple[Location, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it is tagged with."""
        return find_tag_values(self.definition.tags, "model")

    @property
    def status(self) -> str:
        """`verified`, or `unverified`; empty where no tag tells."""
        return next(iter(find_tag_values(self.definition.tags, "status")), "")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What was there at one look."""

    entries: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()
    """Definitions that cannot be read, and why."""
    traces: tuple[tuple[str, int, int], ...] = ()
    """Files of traces with time and size: the same again, and nothing was measured since."""

    def by_name(self) -> dict[str, Entry]:
        """Index them by the name that the document gives; the first of two."""
        found: dict[str, Entry] = {}
        for entry in self.entries:
            found.setdefault(entry.definition.name, entry)
        return found


@dataclass
class _Counts:
    workloads: int = 0
    evaluations: int = 0
    solutions: list[Location] = field(default_factory=list)


class Catalogue:
    """The contents of a dataset, looked at anew each time; threads take turns."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._known: dict[str, tuple[int, int, Any]] = {}
        self._turn = threading.Lock()

    def read(self, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Contents:
        """Look at what there is now.

        Raises:
            StorageError: a folder cannot be read.
        """
        with self._turn:
            files = [file for file in self._dataset.files(*_FOLDERS) if file.location is not None]
            return self._read(files, progress)

    def _read(self, files: list[StoredFile], progress: Callable[[int, int], None]) -> Contents:
        counts: dict[tuple[str, str], _Counts] = {}
        definitions: list[tuple[Location, Definition]] = []
        problems: list[str] = []
        traces: list[tuple[str, int, int]] = []
        for done, file in enumerate(files):
            progress(done, len(files))
            at = file.location
            if at is None:
                continue
            own = counts.setdefault((at.op_type, at.definition), _Counts())
            try:
                if at.kind is Kind.DEFINITION:
                    definitions.append((at, self._look(file, self._dataset.load_definition)))
                elif at.kind is Kind.WORKLOADS:
                    own.workloads = self._look(file, self._count_lines)
                elif at.kind is Kind.TRACES:
                    own.evaluations += self._look(file, self._count_lines)
                    traces.append((file.relative, *_stamp(file.path)))
                elif at.kind is Kind.SOLUTION:
                    own.solutions.append(at)
            except (FibError, OSError) as error:
                problems.append(f"{file.relative}: {error}")
        self._forget(files)
        return Contents(
            entries=tuple(_make_entry(at, definition, counts) for at, definition in definitions),
            problems=tuple(problems),
            traces=tuple(traces),
        )

    def _look(self, file: StoredFile, read: Callable[[str], Value]) -> Value:
        """Give what was read of a file before, unless it has changed."""
        stamp = _stamp(file.path)
        known = self._known.get(file.relative)
        if known is not None and known[:2] == stamp:
            value: Value = known[2]
            return value
        value = read(file.relative)
        self._known[file.relative] = (*stamp, value)
        return value

    def _count_lines(self, relative: str) -> int:
        return len(self._dataset.read_lines(relative))

    def _forget(self, files: Iterable[StoredFile]) -> None:
        there = {file.relative for file in files}
        for gone in self._known.keys() - there:
            del self._known[gone]


def _stamp(path: Path) -> tuple[int, int]:
    seen = path.stat()
    return seen.st_mtime_ns, seen.st_size


def _make_entry(at: Location, definition: Definition, counts: dict[tuple[str, str], _Counts]) -> Entry:
    own = counts[at.op_type, at.definition]
    return Entry(
        definition=definition,
        at=at,
        workloads=own.workloads,
        evaluations=own.evaluations,
        solutions=tuple(own.solutions),
    )
