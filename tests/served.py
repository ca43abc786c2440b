"""A server in a process of its own, for tests and benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Served", "serve_http"]


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    url: str
    token: str
    process: subprocess.Popen[str]


@contextmanager
def serve_http(workspace: Path, *arguments: str, **environment: str) -> Iterator[Served]:
    """Start `fib mcp --http 0` and read where it listens."""
    command = [sys.executable, "-m", "fib_tools", "mcp", "--http", "0", "--offline", "--quiet", *arguments]
    process = subprocess.Popen(
        [*command, "--workspace", str(workspace)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FIB_MCP_TOKEN": "", **environment},
    )
    assert process.stderr is not None
    try:
        url = process.stderr.readline().removeprefix("listening on ").strip()
        token = process.stderr.readline().removeprefix("token: ").strip()
        yield Served(url, token, process)
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stderr.close()
