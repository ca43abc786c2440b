"""Where each page lies: names that can be file names stand as they are, others as a hash; so paths need no quoting."""

from __future__ import annotations

import hashlib
import posixpath
import re
from urllib.parse import quote

from fib_tools.dataset.layout import Location
from fib_tools.errors import PathError
from fib_tools.host.paths import check_component

__all__ = [
    "DEFINITIONS",
    "INDEX",
    "LEADERBOARD",
    "MODELS",
    "TIMELINES",
    "data_path",
    "definition_path",
    "definitions_of",
    "is_site_path",
    "link",
    "model_path",
    "solution_path",
    "timeline_path",
]

INDEX = "index.html"
MODELS = "models.html"
DEFINITIONS = "definitions.html"
LEADERBOARD = "leaderboard.html"
TIMELINES = "timelines.html"

_HASH_LENGTH = 16
_HASH = re.compile(r"~[0-9a-f]{16}")
_FOLDERS = {
    "assets": (1, ""),
    "data": (2, ".json"),
    "definitions": (2, ".html"),
    "models": (1, ".html"),
    "solutions": (4, ".html"),
    "timelines": (1, ""),
}
"""How deep the files of each folder lie, and how their names end."""


def _part(name: str) -> str:
    try:
        return check_component(name)
    except PathError:
        # no name of a file begins with ~, so it cannot be another's
        return f"~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:_HASH_LENGTH]}"


def definitions_of(op_type: str) -> str:
    """Address the list of Definitions with those of one op_type shown."""
    return f"{DEFINITIONS}?op_type={quote(op_type, safe='')}"


def definition_path(op_type: str, name: str) -> str:
    """Place the page of a Definition."""
    return f"definitions/{_part(op_type)}/{_part(name)}.html"


def data_path(op_type: str, name: str) -> str:
    """Place what a Definition's page shows of measurements and their Evidence, when it is asked to."""
    return f"data/{_part(op_type)}/{_part(name)}.json"


def solution_path(at: Location) -> str:
    """Place the page of a Solution."""
    return f"solutions/{_part(at.author)}/{_part(at.op_type)}/{_part(at.definition)}/{_part(at.file)}.html"


def model_path(slug: str) -> str:
    """Place the page of a model."""
    return f"models/{_part(slug)}.html"


def timeline_path(file: str) -> str:
    """Place a trace for Perfetto."""
    return f"timelines/{_part(file)}"


def is_site_path(path: str) -> bool:
    """Tell whether a site can have a file at a path, of whatever dataset it is."""
    if path in (INDEX, MODELS, DEFINITIONS, LEADERBOARD, TIMELINES):
        return True
    top, *parts = path.split("/")
    depth, suffix = _FOLDERS.get(top, (0, ""))
    if not parts or len(parts) != depth or not path.endswith(suffix):
        return False
    names = [*parts[:-1], parts[-1].removesuffix(suffix)]
    return all(_HASH.fullmatch(name) or _part(name) == name for name in names)


def link(path: str, *, of: str) -> str:
    """Write the way to a path from the page at another."""
    return posixpath.relpath(path, posixpath.dirname(of) or ".")
