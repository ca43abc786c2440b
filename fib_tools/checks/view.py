"""A dataset read once for all checks: Definitions in memory, the long files streamed line by line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TypeVar

from fib_tools.dataset.layout import Kind, Location
from fib_tools.dataset.store import Dataset, StoredFile
from fib_tools.errors import FibError, FormatError
from fib_tools.model.base import Model, read_lenient
from fib_tools.model.canonical import load_json
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Solution
from fib_tools.model.trace import Trace

__all__ = ["DatasetView", "Line", "open_view"]

ModelT = TypeVar("ModelT", bound=Model)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a JSONL file: a Trace, or why it is none."""

    where: str
    trace: Trace | None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetView:
    """Everything the checks look at."""

    dataset: Dataset
    files: tuple[StoredFile, ...]
    definitions: dict[str, list[tuple[str, Definition]]]
    """By name: path and document of each file that says it has this name."""
    solutions: tuple[tuple[str, Location, Solution], ...]
    unreadable: tuple[tuple[str, Kind, str], ...]
    """Path, kind and problem of documents that do not parse."""
    selected: frozenset[str] | None = None
    """Only findings on these definitions are wanted; None: all."""
    uuids: dict[str, dict[str, str]] = field(default_factory=dict)
    """By definition: uuid -> canonical line, filled by the first pass over the workload files."""

    @cached_property
    def unreadable_names(self) -> frozenset[str]:
        """The names that the paths of unreadable documents give."""
        return frozenset(PurePosixPath(path).name.removesuffix(".json") for path, _, _ in self.unreadable)

    def find_definition(self, name: str) -> Definition | None:
        """Find a Definition by name."""
        found = self.definitions.get(name)
        return found[0][1] if found else None

    def of_kind(self, kind: Kind) -> Iterator[tuple[str, Location]]:
        """Yield path and location of the files of one kind."""
        for file in self.files:
            if file.location is not None and file.location.kind is kind and self.wants(file.location.definition):
                yield file.relative, file.location

    def wants(self, definition: str) -> bool:
        """Tell whether findings on a definition are wanted."""
        return self.selected is None or definition in self.selected

    def lines(self, relative: str) -> Iterator[Line]:
        """Yield the lines of a JSONL file, those that are no Trace with their problem."""
        try:
            text = self.dataset.read(relative).decode()
        except (FibError, UnicodeDecodeError) as error:
            yield Line(where=relative, trace=None, problem=_problem(error))
            return
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{relative}:{number}"
            try:
                yield Line(where=where, trace=read_lenient(Trace, load_json(line, where=where), where=where))
            except FormatError as error:
                yield Line(where=where, trace=None, problem=error.what)


def open_view(
    dataset: Dataset, *, op_types: Iterable[str] | None = None, names: Iterable[str] | None = None
) -> DatasetView:
    """Read a dataset's Definitions and Solutions; the filters choose which findings are wanted, not what is read."""
    files = tuple(dataset.files())
    unreadable: list[tuple[str, Kind, str]] = []
    definitions: dict[str, list[tuple[str, Definition]]] = {}
    solutions: list[tuple[str, Location, Solution]] = []
    for file in files:
        if file.location is None:
            continue
        if file.location.kind is Kind.DEFINITION:
            definition = _load(dataset, file.relative, Definition, unreadable)
            if definition is not None:
                definitions.setdefault(definition.name, []).append((file.relative, definition))
        elif file.location.kind is Kind.SOLUTION:
            solution = _load(dataset, file.relative, Solution, unreadable)
            if solution is not None:
                solutions.append((file.relative, file.location, solution))
    return DatasetView(
        dataset=dataset,
        files=files,
        definitions=definitions,
        solutions=tuple(solutions),
        unreadable=tuple(unreadable),
        selected=_select(files, op_types, names),
    )


def _select(
    files: Iterable[StoredFile], op_types: Iterable[str] | None, names: Iterable[str] | None
) -> frozenset[str] | None:
    if op_types is None and names is None:
        return None
    wanted_types, wanted_names = set(op_types or ()), set(names or ())
    located = [file.location for file in files if file.location is not None]
    return frozenset(
        at.definition
        for at in located
        if (op_types is None or at.op_type in wanted_types) and (names is None or at.definition in wanted_names)
    )


def _load(
    dataset: Dataset, relative: str, kind: type[ModelT], unreadable: list[tuple[str, Kind, str]]
) -> ModelT | None:
    try:
        return read_lenient(kind, load_json(dataset.read(relative), where=relative), where=relative)
    except FibError as error:
        role = Kind.DEFINITION if kind is Definition else Kind.SOLUTION
        unreadable.append((relative, role, _problem(error)))
        return None


def _problem(error: Exception) -> str:
    return error.what if isinstance(error, FibError) else str(error)
