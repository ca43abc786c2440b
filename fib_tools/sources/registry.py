"""The models this package knows by name, with their published `config.json` and where each copy was found.

`registry_data/models.json` holds one line a model; the configs lie beside it, byte for byte as they were found.
A model without a config is known by name only: serving configurations mention it, and its config must come from elsewhere.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from fib_tools.errors import UnknownModelError
from fib_tools.model.base import Model

__all__ = ["ModelEntry", "Provenance", "find_model", "find_nearest_names", "fold_name", "get_model", "list_models"]

_DATA = Path(__file__).with_name("registry_data")
_SEPARATORS = re.compile(r"[-_.\s]+")
# Fine-tuning does not change a shape, so the name of the model stands for its instruction-tuned release too.
_TUNING_SUFFIX = re.compile(r"(instruct|chat|it)$")


class Provenance(Model):
    """Where a bundled config was found, and how far other copies agree with it."""

    found_at: str
    """Repository, path and commit of the copy."""
    remark: str | None = None
    """What comparing it with other copies showed."""
    sha256: str
    """Of the bundled bytes, which are those of the copy."""


class ModelEntry(Model):
    """One known model."""

    slug: str
    """The short name that manifests, tags and file names use, such as `kimi-k2`."""
    repo_id: str
    """Its repository on the Hugging Face Hub."""
    aliases: tuple[str, ...] = ()
    """Other names and repositories of the same model."""
    siblings: tuple[str, ...] = ()
    """Repositories of the same shapes, whose serving configurations apply where this one has none."""
    config_file: str | None = None
    """The bundled config's file name; none when only the name is known."""
    provenance: Provenance | None = None

    @property
    def config(self) -> dict[str, Any] | None:
        """The bundled config, read afresh, so that a caller may change it."""
        raw = self.config_bytes
        return None if raw is None else dict(json.loads(raw))

    @property
    def config_bytes(self) -> bytes | None:
        """The bundled config as it was found."""
        return None if self.config_file is None else (_DATA / "configs" / self.config_file).read_bytes()


class _Index(Model):
    models: tuple[ModelEntry, ...] = Field(min_length=1)


@functools.cache
def list_models() -> tuple[ModelEntry, ...]:
    """All known models, by slug."""
    return _Index.model_validate_json((_DATA / "models.json").read_bytes()).models


def find_model(name: str) -> ModelEntry | None:
    """Find a model by slug, alias or repository, whatever the case, separators or `-instruct` at the end.

    A name with an organisation is found only under that organisation: a stranger's copy is another model.
    """
    names = _names()
    key = fold_name(name)
    return names.get(key) or names.get(_TUNING_SUFFIX.sub("", key))


def get_model(name: str) -> ModelEntry:
    """As `find_model`, for a name that must be known.

    Raises:
        UnknownModelError: with the nearest known names.
    """
    entry = find_model(name)
    if entry is None:
        raise UnknownModelError(name, find_nearest_names(name))
    return entry


def find_nearest_names(name: str) -> tuple[str, ...]:
    """The slugs that look most like a name, best first; at most three."""
    slugs = {fold_name(entry.slug): entry.slug for entry in list_models()}
    nearest = difflib.get_close_matches(fold_name(name.rpartition("/")[2]), slugs, n=3, cutoff=0.5)
    return tuple(slugs[key] for key in nearest)


@functools.cache
def _names() -> dict[str, ModelEntry]:
    """Every key a model answers to; an exact name of one model wins over a shortened name of another."""
    names: dict[str, ModelEntry] = {}
    for entry in list_models():
        for name in _full_names(entry):
            names.setdefault(fold_name(name), entry)
    for entry in list_models():
        for name in _full_names(entry):
            names.setdefault(_TUNING_SUFFIX.sub("", fold_name(name)), entry)
    return names


def _full_names(entry: ModelEntry) -> Iterator[str]:
    organisation = entry.repo_id.partition("/")[0]
    for name in (entry.slug, entry.repo_id, *entry.aliases):
        yield name
        yield name.partition("/")[2] if "/" in name else f"{organisation}/{name}"


def fold_name(name: str) -> str:
    """Fold case and drop separators, so that `llama31-8b` and `Llama-3.1-8B` are one name."""
    organisation, slash, tail = name.strip().casefold().rpartition("/")
    return organisation + slash + _SEPARATORS.sub("", tail)
