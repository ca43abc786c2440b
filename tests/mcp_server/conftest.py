from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fib_tools.phases.context import Context, Workspace
from served import Served, serve_http


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(workspace=Workspace(root=tmp_path / "work"), offline=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve_http(tmp_path / "work") as server:
        yield server
