"""Reading and writing a dataset: every write is canonical, atomic and inside the root; nothing is overwritten unasked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from glob import escape
from pathlib import Path, PurePosixPath

from fib_tools.dataset.layout import Kind, Location, find_location
from fib_tools.errors import FormatError, PathError, RequestError, StorageError
from fib_tools.host.files import read_limited, storage_errors, sweep_temporaries, write_atomically
from fib_tools.host.paths import check_component, confine
from fib_tools.model.base import read_lenient
from fib_tools.model.canonical import canonical_bytes, format_line, load_json
from fib_tools.model.definition import Definition
from fib_tools.model.evidence import Evidence
from fib_tools.model.reference_log import REFERENCE_LOG, ReferenceLog
from fib_tools.model.solution import Solution
from fib_tools.model.tags import merge_tags
from fib_tools.model.trace import Trace
from fib_tools.model.workload import Workload

__all__ = ["Dataset", "StoredFile", "Written", "count_documents"]

DOCUMENT_LIMIT = 16 << 20
"""Bytes of one document; the largest published workload file has 1.3 MB."""

TRACES_LIMIT = 256 << 20
"""Bytes of a file of traces: each Solution adds a line for each Workload."""

_FOLDERS = ("definitions", "workloads", "solutions", "traces", "blob", "tests")
_OURS = ("evidence", "provenance", "logs")
"""Folders that flashinfer-bench does not know; alone they make no dataset."""

_WRITTEN = (
    *("definitions/*", "workloads/*", "solutions/*/*/*", "traces/*/*", "evidence/*", "blob/workloads/*/*"),
    "logs/*/*",
)
"""Folders that runs write into."""


class Written(str, Enum):
    """What a write came to."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file found in the dataset."""

    path: Path
    relative: str
    """Relative to the root, with forward slashes."""
    location: Location | None
    """None when it stands where the layout has no place for it."""


class Dataset:
    """A dataset folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, root: Path) -> Dataset:
        """Open an existing dataset.

        Raises:
            RequestError: when there is no such folder, or it has none of a dataset's folders.
        """
        if not any((root / folder).is_dir() for folder in _FOLDERS):
            raise RequestError(
                "there is no dataset", where=str(root), todo="pass --dataset DIR or run: fib define MODEL"
            )
        return cls(root)

    def files(self, *folders: str) -> Iterator[StoredFile]:
        """Yield every file under the dataset's own folders, or some of them, in order of path; links are not followed.

        Raises:
            StorageError: when a folder cannot be read: a dataset half seen would look whole.
        """
        for folder in folders or (*_FOLDERS, *_OURS):
            yield from map(self._found, _walk(self.root / folder))

    def files_of(self, definition: str) -> Iterator[StoredFile]:
        """Yield the Solutions and Traces under a Definition's name, in order of path, without a look at the others."""
        if PurePosixPath(definition).name != definition:
            return  # no file has such a name
        name = escape(definition)
        for pattern in (f"solutions/*/*/{name}/*.json", f"traces/*/{name}.jsonl", f"traces/*/*/{name}.jsonl"):
            for path in sorted(self.root.glob(pattern)):
                yield self._found(path)

    def _found(self, path: Path) -> StoredFile:
        """Place a file; one whose name is no text has no place, and its bytes are escaped."""
        relative = path.relative_to(self.root).as_posix()
        printable = relative.encode("utf-8", "backslashreplace").decode()
        location = find_location(relative) if printable == relative else None
        return StoredFile(path=path, relative=printable, location=location)

    def definition_files(self) -> Iterator[StoredFile]:
        """Yield the files that hold Definitions."""
        found = map(self._found, _walk(self.root / "definitions"))
        yield from (file for file in found if file.location is not None and file.location.kind is Kind.DEFINITION)

    def read(self, relative: str) -> bytes:
        """Read a file of the dataset.

        Raises:
            PathError: when it is a link out of the root.
            DocumentTooLargeError: over 16 MiB.
        """
        return read_limited(confine(self.root, *relative.split("/")), DOCUMENT_LIMIT)

    def load_definition(self, relative: str) -> Definition:
        """Load a Definition, ours or another tool's.

        Raises:
            FormatError: when the file does not hold one.
        """
        return read_lenient(Definition, load_json(self.read(relative), where=relative), where=relative)

    def load_definitions(
        self, report: Callable[[int, int], None] = lambda _done, _total: None
    ) -> tuple[dict[str, Definition], tuple[FormatError | PathError, ...]]:
        """Load every Definition by name; broken files come back as errors beside the good ones."""
        loaded: dict[str, Definition] = {}
        broken: list[FormatError | PathError] = []
        files = list(self.definition_files())
        for done, file in enumerate(files):
            report(done, len(files))
            try:
                definition = self.load_definition(file.relative)
            except (FormatError, PathError) as error:
                broken.append(error)
                continue
            loaded.setdefault(definition.name, definition)
        return loaded, tuple(broken)

    def find_definition(self, name: str) -> Definition | None:
        """Find a Definition by its name, whatever its op_type."""
        found = [file for file in self.definition_files() if file.path.stem == name]
        return self.load_definition(found[0].relative) if found else None

    def load_workloads(self, op_type: str, definition: str) -> tuple[Workload, ...]:
        """Load a Definition's Workloads in the order of their file; none where there is no file.

        Raises:
            FormatError: a line is no Workload.
        """
        at = str(Location(kind=Kind.WORKLOADS, op_type=op_type, definition=definition))
        traces = []
        for number, line in self._number_lines(at):
            document = load_json(line, where=at, first_line=number)
            traces.append(read_lenient(Trace, document, where=f"{at}:{number}"))
        return tuple(trace.workload for trace in traces)

    def load_solution(self, relative: str) -> Solution:
        """Load a Solution, ours or another tool's.

        Raises:
            FormatError: when the file does not hold one.
        """
        return read_lenient(Solution, load_json(self.read(relative), where=relative), where=relative)

    def load_solutions(self, op_type: str, definition: str) -> tuple[Solution, ...]:
        """Load a Definition's Solutions in the order of their paths: by author, then by name.

        Raises:
            FormatError: a file holds none.
        """
        loaded, broken = self.read_solutions(op_type, definition)
        if broken:
            raise next(iter(broken.values()))
        return loaded

    def read_solutions(
        self, op_type: str, definition: str
    ) -> tuple[tuple[Solution, ...], dict[str, FormatError | PathError]]:
        """Load those that can be, in the order of their paths, and say what is wrong with the others, by path."""
        loaded: list[Solution] = []
        broken: dict[str, FormatError | PathError] = {}
        for path in sorted(
            self.root.glob(f"solutions/*/{check_component(op_type)}/{check_component(definition)}/*.json")
        ):
            relative = path.relative_to(self.root).as_posix()
            try:
                solution = self.load_solution(relative)
            except (FormatError, PathError) as error:
                broken[relative] = error
                continue
            if solution.definition != definition:
                what = f"it says that it is of the Definition {solution.definition}"
                broken[relative] = FormatError(what, where=relative, todo="move the file, or change its `definition`")
            else:
                loaded.append(solution)
        return tuple(loaded), broken

    def read_lines(self, relative: str) -> list[str]:
        """Read the lines of a JSONL file that are not blank; none where there is no file.

        Raises:
            PathError: it is a link out of the root.
            DocumentTooLargeError: over 256 MiB.
        """
        return [line for _, line in self._number_lines(relative)]

    def _number_lines(self, relative: str) -> list[tuple[int, str]]:
        """Read them with their numbers in the file, blank ones counted."""
        path = confine(self.root, *relative.split("/"))
        if not path.exists():
            return []
        try:
            text = read_limited(path, TRACES_LIMIT).decode()
        except UnicodeDecodeError as error:
            raise FormatError("not UTF-8", where=relative, todo="mend or remove it") from error
        return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]

    def find_evidence(self, key: str) -> Evidence | None:
        """Find what was seen in an evaluation.

        Raises:
            FormatError: what lies at its address is not it.
        """
        at = str(Location(kind=Kind.EVIDENCE, file=key))
        if not confine(self.root, *at.split("/")).exists():
            return None
        evidence = read_lenient(Evidence, load_json(self.read(at), where=at), where=at)
        if evidence.key != key:
            raise FormatError("it is evidence of another evaluation", where=at, todo="remove it, and measure again")
        return evidence

    def write_evidence(self, evidence: Evidence) -> Written:
        """Write what was seen in an evaluation at its address, in place of what was seen before."""
        return self._write(Location(kind=Kind.EVIDENCE, file=evidence.key), canonical_bytes(evidence))

    def find_log(self, op_type: str, definition: str) -> ReferenceLog | None:
        """Find what a Definition's reference test said on a GPU.

        Raises:
            FormatError: the file holds no such log.
        """
        at = str(_place_log(op_type, definition))
        if not confine(self.root, *at.split("/")).exists():
            return None
        return read_lenient(ReferenceLog, load_json(self.read(at), where=at), where=at)

    def write_log(self, op_type: str, log: ReferenceLog) -> Written:
        """Write what a reference test said on a GPU, in place of what it said before."""
        return self._write(_place_log(op_type, log.definition), canonical_bytes(log))

    def write_traces(self, at: Location, lines: Sequence[str]) -> Written:
        """Write the lines of a file of traces as they are."""
        return self._write(at, "".join(f"{line}\n" for line in lines).encode())

    def _write(self, at: Location, data: bytes) -> Written:
        path = confine(self.root, *str(at).split("/"))
        existed = path.exists()
        if existed and read_limited(path, TRACES_LIMIT) == data:
            return Written.UNCHANGED
        _make_folder(path.parent)
        write_atomically(path, data)
        return Written.UPDATED if existed else Written.CREATED

    def write_definition(self, definition: Definition) -> Written:
        """Write a Definition under its own op_type and name; one that stands there may only gain tags.

        Raises:
            RequestError: when another Definition stands there.
        """
        at = Location(kind=Kind.DEFINITION, op_type=definition.op_type, definition=definition.name)
        path = confine(self.root, *str(at).split("/"))
        if path.exists():
            standing = self.load_definition(str(at))
            definition = definition.model_copy(update={"tags": merge_tags(standing.tags, definition.tags)})
            if definition.model_copy(update={"tags": []}) != standing.model_copy(update={"tags": []}):
                raise RequestError(
                    f"another Definition named {definition.name!r} stands there",
                    where=str(at),
                    todo="give the new one another name; nothing was overwritten",
                )
            if definition.tags == standing.tags:
                return Written.UNCHANGED
        existed = path.exists()
        _make_folder(path.parent)
        write_atomically(path, canonical_bytes(definition))
        return Written.UPDATED if existed else Written.CREATED

    def write_solution(self, op_type: str, solution: Solution, *, dry_run: bool = False) -> Written:
        """Write a Solution under its author and its Definition's op_type; one that runs the same stays as it is.

        Raises:
            RequestError: when another Solution stands there.
        """
        place = {"op_type": op_type, "definition": solution.definition, "author": solution.author}
        at = Location(kind=Kind.SOLUTION, file=solution.name, **place)
        if confine(self.root, *str(at).split("/")).exists():
            standing = self.load_solution(str(at))
            if (standing.author, standing.name, standing.hash) != (solution.author, solution.name, solution.hash):
                raise RequestError(
                    f"another Solution named {solution.name!r} stands there",
                    where=str(at),
                    todo="give the new one another name; nothing was overwritten",
                )
            return Written.UNCHANGED
        return Written.CREATED if dry_run else self._write(at, canonical_bytes(solution))

    def write_workloads(self, op_type: str, traces: list[Trace]) -> Written:
        """Write a Definition's workload file: one line a Workload, in order of uuid."""
        names = {trace.definition for trace in traces}
        if len(names) != 1 or not all(trace.is_workload for trace in traces):
            raise RequestError("a workload file holds workload lines of one Definition", todo="write them one by one")
        at = Location(kind=Kind.WORKLOADS, op_type=op_type, definition=names.pop())
        lines = {trace.workload.uuid: format_line(trace) for trace in traces}
        return self._write(at, "".join(f"{lines[key]}\n" for key in sorted(lines)).encode())

    def write_blob(self, at: Location, data: bytes) -> Written:
        """Write a blob whose name follows from its content; one that stands stays as it is.

        Raises:
            RequestError: what stands there says something else.
        """
        path = confine(self.root, *str(at).split("/"))
        if path.exists() and (path.stat().st_size != len(data) or path.read_bytes() != data):
            raise RequestError(
                "another blob stands there",
                where=str(at),
                todo="remove it, if no Workload names it; nothing was overwritten",
            )
        return self._write(at, data) if not path.exists() else Written.UNCHANGED

    def sweep(self) -> None:
        """Remove what a killed run of ours left half-written."""
        for pattern in _WRITTEN:
            top = self.root / pattern.partition("/")[0]
            for folder in () if top.is_symlink() else sorted(self.root.glob(pattern)):
                if folder.is_dir() and not folder.is_symlink():
                    sweep_temporaries(folder)


def _place_log(op_type: str, definition: str) -> Location:
    return Location(kind=Kind.LOG, op_type=op_type, definition=definition, file=REFERENCE_LOG)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield files and links in order of path."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise StorageError(
                f"cannot read a folder: {error.strerror}",
                where=str(error.filename),
                todo="give yourself permission to it",
            ) from error

    found: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        found += (f"{parent}/{name}" for name in files)
        found += (path for name in folders if Path(path := f"{parent}/{name}").is_symlink())
    # as paths are ordered, and in a fraction of the time that comparing them takes
    yield from map(Path, sorted(found, key=lambda path: path.split("/")))


def _make_folder(folder: Path) -> None:
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def count_documents(files: Iterator[StoredFile]) -> dict[str, int]:
    """Count files by kind, `stray` for those out of place."""
    counts: dict[str, int] = {}
    for file in files:
        kind = file.location.kind.value if file.location else "stray"
        counts[kind] = counts.get(kind, 0) + 1
    return counts
