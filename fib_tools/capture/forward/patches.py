"""Attributes of others that are replaced for a while, and put back whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from typing_extensions import Self

__all__ = ["Patches"]


class Patches:
    """What was replaced, in order; a context manager that puts it back."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, bool]] = []
        self._wrapped: set[int] = set()

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace an attribute by what `make` makes of it; what was wrapped before is left alone."""
        original = getattr(owner, name)
        if id(original) in self._wrapped:
            return
        replacement = make(original)
        self._wrapped.add(id(replacement))
        self._undo.append((owner, name, original, name in vars(owner)))
        setattr(owner, name, replacement)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put everything back, the last first."""
        while self._undo:
            owner, name, original, was_own = self._undo.pop()
            if was_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)
