"""Attributes of others that are replaced for a while, and put back whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from typing_extensions import Self

__all__ = ["Patches"]


@dataclass(frozen=True, slots=True)
class _Place:
    """An attribute that was replaced."""

    owner: Any
    name: str
    original: Any
    replacement: Any
    was_own: bool
    """Whether the owner had it itself."""


class Patches:
    """What was replaced, in order; a context manager that puts it back."""

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._wrapped: set[int] = set()
        self._replacements: dict[int, Any] = {}
        """By the identity of what each replaces, which a place keeps."""
        self._is_in = True

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace an attribute by what `make` makes of it; what was wrapped before is left alone."""
        original = getattr(owner, name)
        if id(original) in self._wrapped:
            return
        self.put_in()
        replacement = make(original)
        self._wrapped.add(id(replacement))
        self._replacements[id(original)] = replacement
        self._places.append(_Place(owner, name, original, replacement, name in vars(owner)))
        setattr(owner, name, replacement)

    def find_replacement(self, original: Any) -> Any | None:
        """Find what stands for a function or another attribute, wherever that was."""
        return self._replacements.get(id(original))

    def take_out(self) -> None:
        """Put everything back for a while, the last first."""
        if not self._is_in:
            return
        for place in reversed(self._places):
            if place.was_own:
                setattr(place.owner, place.name, place.original)
            else:
                delattr(place.owner, place.name)
        self._is_in = False

    def put_in(self) -> None:
        """Replace everything again."""
        if self._is_in:
            return
        for place in self._places:
            setattr(place.owner, place.name, place.replacement)
        self._is_in = True

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put everything back."""
        self.take_out()
