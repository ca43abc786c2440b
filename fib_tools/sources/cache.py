"""Results of slow readings, kept on disk; whatever is wrong with a kept file, it is read anew from the source."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from fib_tools.errors import FormatError, StorageError
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.model.base import Model

__all__ = ["load_or_build"]

_LIMIT = 32 << 20

ModelT = TypeVar("ModelT", bound=Model)


def load_or_build(kind: type[ModelT], path: Path | None, build: Callable[[], ModelT]) -> ModelT:
    """Take a result from its cache file, or build and keep it; no path means no cache.

    The path has to name everything that the result depends on.
    """
    if path is None:
        return build()
    kept = _load(kind, path)
    if kept is not None:
        return kept
    built = build()
    # A cache that cannot be kept costs time, not correctness.
    with contextlib.suppress(StorageError), storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, built.model_dump_json().encode())
    return built


def _load(kind: type[ModelT], path: Path) -> ModelT | None:
    if not path.is_file():
        return None
    try:
        return kind.model_validate_json(read_limited(path, _LIMIT))
    except (ValidationError, FormatError, StorageError):
        return None
