"""Which packages are installed here."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata

__all__ = ["find_versions"]


def find_versions(packages: Iterable[str]) -> dict[str, str]:
    """Find the versions of those packages that are installed, in the order given."""
    found: dict[str, str] = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
