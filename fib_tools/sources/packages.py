"""Python packages as text: an installed package, a clone or an unpacked wheel, found and read without importing it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from fib_tools.errors import FormatError, SourceError
from fib_tools.host.files import read_limited
from fib_tools.model.base import Model

__all__ = ["Package", "SourceFile", "find_package", "list_files", "parse_files", "read_files"]

# The largest hand-written module of FlashInfer and SGLang together has 0.6 MB; generated tables are no source of facts.
_FILE_LIMIT = 4 << 20
_LAYOUTS = ("", "{name}", "python/{name}", "src/{name}")
_VERSION_FILES = ("_version.py", "_build_meta.py", "version.py", "__init__.py")
_VERSION = re.compile(r"""^__version__\b[^\n]*=\s*["']([^"'\n]+)["']""", re.MULTILINE)
_COMMIT = re.compile(r"""^(?:__git_commit__|__commit_id__)\b[^\n]*=\s*["']([^"'\n]+)["']""", re.MULTILINE)


class Package(Model):
    """Where a package's source lies, and which source it is."""

    name: str
    folder: Path
    """The folder that holds the package's `__init__.py`."""
    version: str
    """As the source says; `unknown` for a clone that was never built."""
    commit: str | None = None
    fingerprint: str
    """Changes with every changed, added or removed Python file."""


class SourceFile(Model):
    """One Python file of a package."""

    path: str
    """Relative to the folder above the package, such as `flashinfer/norm/__init__.py`."""
    module: str
    """The dotted name it is imported by."""
    is_package: bool


def find_package(name: str, root: Path | None = None) -> Package | None:
    """Find a package in a folder (itself, a clone or an unpacked wheel), or installed when no folder is given."""
    folder = _installed_folder(name) if root is None else _folder_in(name, root)
    if folder is None:
        return None
    texts = [
        read_limited(folder / file, _FILE_LIMIT).decode(errors="replace")
        for file in _VERSION_FILES
        if (folder / file).is_file()
    ]
    return Package(
        name=name,
        folder=folder,
        version=_first_match(_VERSION, texts) or _version_beside(folder) or "unknown",
        commit=_first_match(_COMMIT, texts),
        fingerprint=_fingerprint(folder),
    )


def _installed_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _folder_in(name: str, root: Path) -> Path | None:
    for layout in _LAYOUTS:
        folder = root / layout.format(name=name)
        if folder.name == name and (folder / "__init__.py").is_file():
            return folder
    return None


def _first_match(pattern: re.Pattern[str], texts: Iterable[str]) -> str | None:
    return next((match[1] for text in texts if (match := pattern.search(text))), None)


def _version_beside(folder: Path) -> str | None:
    """The version that a wheel's metadata folder or a clone's version file names."""
    for metadata in sorted(folder.parent.glob(f"{folder.name}*.dist-info")):
        return metadata.name.removesuffix(".dist-info").partition("-")[2]
    version_file = folder.parent / "version.txt"
    if version_file.is_file():
        return read_limited(version_file, 1024).decode(errors="replace").strip() or None
    return None


def list_files(package: Package) -> list[SourceFile]:
    """The package's Python files in the order of their paths; links are not followed."""
    return [_source_file(package, path) for path, _ in sorted(_walk(package.folder))]


def _source_file(package: Package, path: str) -> SourceFile:
    parts = [package.name, *Path(path).with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    return SourceFile.model_construct(
        path=f"{package.name}/{Path(path).as_posix()}",
        module=".".join(parts[:-1] if is_package else parts),
        is_package=is_package,
    )


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.is_symlink():
                    continue
                if entry.is_dir():
                    pending.append(f"{prefix}{entry.name}{os.sep}")
                elif entry.name.endswith(".py"):
                    yield prefix + entry.name, entry.stat()


def _fingerprint(folder: Path) -> str:
    try:
        lines = sorted(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}" for path, stat in _walk(folder))
    except OSError as error:
        raise SourceError(f"cannot list the package: {error.strerror}", where=str(folder)) from error
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def read_files(package: Package, files: Iterable[SourceFile]) -> Iterator[bytes]:
    """The texts of files, as they are; files over the limit are left out."""
    for file in files:
        text = _read(package.folder.parent / file.path)
        if text is not None:
            yield text


def parse_files(
    package: Package, files: Iterable[SourceFile], *, containing: re.Pattern[bytes] | None = None
) -> Iterator[tuple[SourceFile, ast.Module | None]]:
    """Parse the files in which the pattern is found; None stands for a file that is no Python this interpreter reads."""
    with warnings.catch_warnings():
        # Others' source warns about their escapes while it is parsed; that says nothing about what it declares.
        warnings.simplefilter("ignore")
        for file in files:
            text = _read(package.folder.parent / file.path)
            if text is None:
                yield file, None
            elif containing is None or containing.search(text):
                yield file, _parse(text)


def _read(path: Path) -> bytes | None:
    try:
        return read_limited(path, _FILE_LIMIT)
    except FormatError:
        return None


def _parse(text: bytes) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
