"""The clients: Claude Code from the claude-agent-sdk package, the others from npm; `make clients` fetches them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from claude_code import Claude, find_claude

ROOT = Path(__file__).parents[2]
MODULES = Path(__file__).parent / "node_modules"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run derives from packages and configs, the next need not derive again."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def claude(tmp_path: Path, workspace: Path, cache: Path) -> Claude:
    """Claude Code whose MCP servers work in a workspace of this test."""
    binary = find_claude()
    if binary is None:
        pytest.skip("claude-agent-sdk is not installed with its binary: pip install '.[dev]'")
    environment = {"FIB_WORKSPACE": str(workspace), "XDG_CACHE_HOME": str(cache)}
    return Claude(binary=binary, home=tmp_path / "home", environment=environment)


@pytest.fixture(scope="session")
def installed() -> Path:
    """The virtual environment that `make` made, from which .mcp.json starts the server."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    question = subprocess.run([make, "-q", ".venv/.installed"], cwd=ROOT, capture_output=True, check=False)
    if question.returncode:
        pytest.skip(".venv is missing or older than pyproject.toml and constraints.txt: make .venv/.installed")
    return ROOT / ".venv"


@pytest.fixture(scope="session")
def node_path() -> str:
    """A PATH that begins with the pinned node, which the clients need at run time."""
    found = next(MODULES.glob("node-*/bin/node"), None)
    if found is None:
        pytest.skip("node and the npm clients are not installed: make clients")
    return f"{found.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="session")
def client_binaries(node_path: str) -> Path:
    """The folder of the npm clients' commands."""
    assert node_path
    return MODULES / ".bin"
