from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.phases.context import Context, Workspace


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIB_WORKSPACE", "FIB_OFFLINE", "HF_HUB_OFFLINE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(workspace=Workspace(root=tmp_path / "work"), offline=True)
