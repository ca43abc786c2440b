from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from example_dataset import BLOB, FILES, safetensors, write


@pytest.fixture
def good(tmp_path: Path) -> Path:
    for path, content in FILES.items():
        write(tmp_path, path, content)
    write(tmp_path, BLOB, safetensors({"indptr": ("I32", [3], 12)}))
    return tmp_path


@pytest.fixture
def rewrite(good: Path) -> Callable[..., Path]:
    """Change the document at a path by a function on a deep copy, and write it again."""

    def change(path: str, edit: Callable[[Any], Any], *, to: str | None = None) -> Path:
        copy = json.loads(json.dumps(FILES[path]))
        edited = edit(copy)
        write(good, to or path, copy if edited is None else edited)
        return good

    return change
