"""Names and paths from outside, held inside the folder they belong to."""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

from fib_tools.errors import PathError

__all__ = ["check_component", "check_path", "confine", "list_import_paths", "locate", "slugify"]

_LONGEST_NAME = 200
"""Leaves room for suffixes under the 255 bytes that file systems allow."""
_COMPONENT = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*", re.ASCII)


def list_import_paths() -> tuple[Path, ...]:
    """List where this process finds its packages: a child that is isolated would not know of PYTHONPATH by itself."""
    return tuple(Path(entry) for entry in sys.path if entry and Path(entry).is_dir())


def check_path(path: Path) -> Path:
    """Return a path that the system can be asked for.

    Raises:
        PathError: it holds a NUL.
    """
    if "\0" in str(path):
        raise PathError(f"{str(path)!r} holds a NUL character", todo="pass another path")
    return path


def locate(root: Path, path: Path) -> Path:
    """Find a path inside `root`: a relative one begins there, an absolute one has to lead there.

    Raises:
        PathError: it leads elsewhere.
    """
    if not path.is_absolute():
        return confine(root, str(path))
    for base in (root, root.resolve()):
        if path.is_relative_to(base):
            return confine(root, str(path.relative_to(base)))
    raise PathError(f"{str(path)!r} is not in the workspace", where=str(root), todo="pass a path inside the workspace")


def confine(root: Path, *parts: str) -> Path:
    """Join `parts` to `root` and resolve the links, so that the result lies inside `root`.

    Raises:
        PathError: a part is absolute, climbs, holds a NUL, or a symlink leads out of `root`.
    """
    for part in parts:
        _check_part(part, root)
    try:
        base = root.resolve()
        path = base.joinpath(*parts).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links: RuntimeError before Python 3.13
        raise PathError(
            f"cannot resolve {'/'.join(parts)!r}", where=str(root), todo="remove the broken link"
        ) from error
    if not path.is_relative_to(base):
        raise PathError(f"{'/'.join(parts)!r} leads out of the folder", where=str(root), todo="remove the symlink")
    return path


def _check_part(part: str, root: Path) -> None:
    windows = PureWindowsPath(part)
    if "\0" in part:
        raise PathError(f"{part!r} holds a NUL character", where=str(root), todo="pass a relative path")
    if PurePosixPath(part).is_absolute() or windows.drive or windows.root:
        raise PathError(f"{part!r} is an absolute path", where=str(root), todo="pass a path relative to the folder")
    if ".." in windows.parts:  # splits at both kinds of slash
        raise PathError(f"{part!r} climbs out with '..'", where=str(root), todo="pass a path below the folder")


def check_component(name: str) -> str:
    """Return `name` if it can safely become one file or folder name.

    Raises:
        PathError: it is empty, too long, hidden, option-like, or has other characters.
    """
    if len(name) > _LONGEST_NAME:
        raise PathError(f"the name {name[:40]!r}... has {len(name)} characters", todo=f"use at most {_LONGEST_NAME}")
    if not _COMPONENT.fullmatch(name):
        todo = "use letters, digits and . _ + - and begin with a letter, digit, _ or +"
        raise PathError(f"{name!r} cannot be a file name", todo=todo)
    return name


def slugify(text: str) -> str:
    """Turn any text into a name that `check_component` takes, lower case, with dashes.

    Raises:
        PathError: no letter or digit is left.
    """
    slug = re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._")[:_LONGEST_NAME].rstrip("-._")
    if not slug:
        raise PathError(f"no file name can be made from {text[:40]!r}", todo="use letters or digits")
    return slug
