from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Take SIGINT as a terminal's program does: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def is_gone() -> Callable[[int], bool]:
    """Tell whether a process that was told to die has died, waiting on the kernel's word for it."""

    def gone(pid: int) -> bool:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([descriptor], [], [], 10)[0])
        finally:
            os.close(descriptor)

    return gone
