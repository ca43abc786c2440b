"""Reading and writing a dataset: every write is canonical, atomic and inside the root; nothing is overwritten unasked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fib_tools.dataset.layout import Kind, Location, find_location
from fib_tools.errors import FormatError, PathError, RequestError, StorageError
from fib_tools.host.files import read_limited, storage_errors, sweep_temporaries, write_atomically
from fib_tools.host.paths import confine
from fib_tools.model.base import read_lenient
from fib_tools.model.canonical import canonical_bytes, format_line, load_json
from fib_tools.model.definition import Definition
from fib_tools.model.tags import merge_tags
from fib_tools.model.trace import Trace

__all__ = ["Dataset", "StoredFile", "Written", "count_documents"]

DOCUMENT_LIMIT = 16 << 20
"""Bytes of one document; the largest published workload file has 1.3 MB."""

_FOLDERS = ("definitions", "workloads", "solutions", "traces", "blob", "tests")


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

    def files(self) -> Iterator[StoredFile]:
        """Yield every file under the dataset's own folders, in order of path; links are not followed.

        Raises:
            StorageError: when a folder cannot be read: a dataset half seen would look whole.
        """
        for folder in _FOLDERS:
            for path in sorted(_walk(self.root / folder)):
                yield self._found(path)

    def _found(self, path: Path) -> StoredFile:
        """Place a file; one whose name is no text has no place, and its bytes are escaped."""
        relative = path.relative_to(self.root).as_posix()
        printable = relative.encode("utf-8", "backslashreplace").decode()
        location = find_location(relative) if printable == relative else None
        return StoredFile(path=path, relative=printable, location=location)

    def definition_files(self) -> Iterator[StoredFile]:
        """Yield the files that hold Definitions."""
        found = (self._found(path) for path in sorted(_walk(self.root / "definitions")))
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

    def load_definitions(self) -> tuple[dict[str, Definition], tuple[FormatError | PathError, ...]]:
        """Load every Definition by name; broken files come back as errors beside the good ones."""
        loaded: dict[str, Definition] = {}
        broken: list[FormatError | PathError] = []
        for file in self.definition_files():
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

    def write_workloads(self, op_type: str, traces: list[Trace]) -> Written:
        """Write a Definition's workload file: one line a Workload, in order of uuid."""
        names = {trace.definition for trace in traces}
        if len(names) != 1 or not all(trace.is_workload for trace in traces):
            raise RequestError("a workload file holds workload lines of one Definition", todo="write them one by one")
        at = Location(kind=Kind.WORKLOADS, op_type=op_type, definition=names.pop())
        path = confine(self.root, *str(at).split("/"))
        lines = {trace.workload.uuid: format_line(trace) for trace in traces}
        data = "".join(f"{lines[key]}\n" for key in sorted(lines)).encode()
        existed = path.exists()
        if existed and self.read(str(at)) == data:
            return Written.UNCHANGED
        _make_folder(path.parent)
        write_atomically(path, data)
        return Written.UPDATED if existed else Written.CREATED

    def sweep(self) -> None:
        """Remove what a killed run of ours left half-written."""
        definitions = self.root / "definitions"
        if definitions.is_symlink():
            return
        for folder in sorted(definitions.glob("*")):
            if folder.is_dir() and not folder.is_symlink():
                sweep_temporaries(folder)


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise StorageError(
                f"cannot read a folder: {error.strerror}",
                where=str(error.filename),
                todo="give yourself permission to it",
            ) from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from (Path(parent) / name for name in (*files, *links))


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
