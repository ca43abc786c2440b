from __future__ import annotations

import pytest

from fib_tools.host.cpu import read_cpu_name
from fib_tools.host.hardware import find_hardware


@pytest.mark.parametrize(
    ("device", "pretended", "found"),
    [
        ("cpu", "1", (read_cpu_name(), 0)),
        ("cuda", "1", ("pretended GPU", 0)),
        ("cuda", "0", ("no GPU", 0)),
    ],
)
def test_the_device_that_computes_is_named(
    monkeypatch: pytest.MonkeyPatch, device: str, pretended: str, found: tuple[str, int]
) -> None:
    monkeypatch.setenv("FIB_PRETEND_GPUS", pretended)
    assert find_hardware(device) == found
