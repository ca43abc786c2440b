"""A sandbox whose jobs may use a GPU, which is held meanwhile, and see the packages that kernels come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fib_tools.host.env import engine_environment
from fib_tools.host.gpu_lock import acquire
from fib_tools.host.paths import list_import_paths
from fib_tools.host.sandbox import Sandbox

__all__ = ["open_gpu_sandbox"]


@contextmanager
def open_gpu_sandbox(
    preload: tuple[str, ...], *, command: str, readable: tuple[Path, ...] = (), timeout: float | None = None
) -> Iterator[Sandbox]:
    """Wait for a GPU, `timeout` seconds at most, and open the sandbox; others who wait are told of `command`.

    Raises:
        RequestError: there is no GPU here.
        LockedError: it did not come free in time.
    """
    with acquire(1, timeout=timeout, command=command) as lease:
        environment = {**engine_environment(), **lease.environment}
        with Sandbox(preload, import_paths=list_import_paths(), readable=readable, environment=environment) as sandbox:
            yield sandbox
