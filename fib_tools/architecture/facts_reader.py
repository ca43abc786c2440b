"""Reading fields of an untrusted config: exact kinds, sane bounds, and a record of what was read for which fact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.errors import ConfigError

__all__ = ["LIMITS", "FieldReader"]

LIMITS: dict[str, int] = {
    "hidden": 1 << 20,
    "layers": 2000,
    "heads": 1 << 16,
    "head_dim": 1 << 16,
    "experts": 1 << 16,
    "intermediate": 1 << 24,
    "vocab": 1 << 24,
    "positions": 1 << 40,
    "small": 1 << 16,
}
"""Far beyond any model; a value over them is a mistake or an attack, and would only waste memory later."""


class FieldReader:
    """A config that remembers which field gave which fact."""

    def __init__(self, config: Mapping[str, Any], *, path: str, defaults: Mapping[str, Any], reason: str) -> None:
        """Take `defaults` for fields the document leaves out; `reason` says whose defaults they are."""
        self._config = config
        self._path = path
        self._defaults = defaults
        self._reason = reason
        self.provenance: dict[str, str] = {}
        self.used: set[str] = set()

    def has(self, name: str) -> bool:
        """Tell whether the document (or a default) gives a value other than null."""
        return self._config.get(name) is not None or self._defaults.get(name) is not None

    def where(self, name: str) -> str:
        """Name a field for an error message."""
        return f"{self._path}.{name}" if self._path else name

    def fail(self, name: str, what: str) -> ConfigError:
        """Build the error that names a field."""
        return ConfigError(what, where=self.where(name), todo="correct the model's config.json")

    def explain(self, fact: str, text: str) -> None:
        """Record a rule, rather than a field, as the origin of a fact."""
        self.provenance[fact] = text

    def find(self, names: tuple[str, ...], *, fact: str) -> tuple[str, Any] | None:
        """Return the first of synonymous fields that has a value.

        Raises:
            ConfigError: when two of them have different values.
        """
        given = [(name, self._config[name]) for name in names if self._config.get(name) is not None]
        if any(value != given[0][1] or type(value) is not type(given[0][1]) for _, value in given[1:]):
            texts = ", ".join(f"{name}={value!r}" for name, value in given)
            raise self.fail(given[0][0], f"contradictory fields: {_shorten(texts)}")
        if given:
            self.used.update(name for name, _ in given)
            self.provenance[fact] = f"{given[0][0]}={_shorten(repr(given[0][1]))}"
            return given[0]
        for name in names:
            if self._defaults.get(name) is not None:
                self.provenance[fact] = f"{name}={_shorten(repr(self._defaults[name]))} ({self._reason})"
                return name, self._defaults[name]
        return None

    def find_int(self, *names: str, fact: str, limit: int, low: int = 1) -> int | None:
        """Read a whole number between `low` and `limit`."""
        found = self.find(names, fact=fact)
        if found is None:
            return None
        name, value = found
        if isinstance(value, float) and value.is_integer() and abs(value) <= limit:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(name, f"{_shorten(repr(value))} is not a whole number")
        if not low <= value <= limit:
            raise self.fail(name, f"{_shorten(repr(value))} is not between {low} and {limit}")
        return value

    def get_int(self, *names: str, fact: str, limit: int, low: int = 1) -> int:
        """Read a whole number that must be there."""
        value = self.find_int(*names, fact=fact, limit=limit, low=low)
        if value is None:
            raise self.fail(names[0], f"the field is missing (looked for {' or '.join(names)})")
        return value

    def find_float(self, *names: str, fact: str, low: float = 0.0, high: float = 1e12) -> float | None:
        """Read a number over `low` and not over `high`."""
        found = self.find(names, fact=fact)
        if found is None:
            return None
        name, value = found
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(name, f"{_shorten(repr(value))} is not a number")
        if not low < value <= high:
            raise self.fail(name, f"{_shorten(repr(value))} is not over {low:g} and at most {high:g}")
        return float(value)

    def get_float(self, *names: str, fact: str, low: float = 0.0, high: float = 1e12) -> float:
        """Read a number that must be there."""
        value = self.find_float(*names, fact=fact, low=low, high=high)
        if value is None:
            raise self.fail(names[0], f"the field is missing (looked for {' or '.join(names)})")
        return value

    def find_bool(self, *names: str, fact: str) -> bool | None:
        """Read true or false."""
        found = self.find(names, fact=fact)
        if found is None:
            return None
        if not isinstance(found[1], bool):
            raise self.fail(found[0], f"{_shorten(repr(found[1]))} is not true or false")
        return found[1]

    def find_text(self, *names: str, fact: str) -> str | None:
        """Read a string of at most 4,096 characters."""
        found = self.find(names, fact=fact)
        if found is None:
            return None
        if not isinstance(found[1], str) or not 0 < len(found[1]) <= 4096:
            raise self.fail(found[0], f"{_shorten(repr(found[1]))} is not a short string")
        return found[1]

    def find_list(self, *names: str, fact: str, limit: int = LIMITS["layers"]) -> list[Any] | None:
        """Read a list; one of more than `limit` entries is refused."""
        found = self.find(names, fact=fact)
        if found is None:
            return None
        if not isinstance(found[1], list) or len(found[1]) > limit:
            raise self.fail(found[0], f"not a list of at most {limit} entries")
        return found[1]

    def find_object(self, *names: str, fact: str) -> FieldReader | None:
        """Read a nested object, whose reads are recorded under its own path."""
        found = self.find(names, fact=fact)
        if found is None:
            return None
        if not isinstance(found[1], Mapping):
            raise self.fail(found[0], "not an object")
        return FieldReader(found[1], path=self.where(found[0]), defaults={}, reason=self._reason)

    def names(self) -> tuple[str, ...]:
        """List the fields of the document."""
        return tuple(str(name) for name in self._config)


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
