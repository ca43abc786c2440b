from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fib_tools.gate import execute as module


@pytest.mark.parametrize(("cores", "gigabytes", "jobs"), [(2, 24, 2), (64, 512, 16), (64, 31, 5), (1, 4, 2)])
def test_workloads_are_executed_as_many_at_a_time_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, cores: int, gigabytes: int, jobs: int
) -> None:
    asked: list[int] = []

    def run_many(_entry: str, _payloads: Iterator[Any], *, jobs: int, limits: Any) -> list[Any]:
        del limits
        asked.append(jobs)
        return []

    sandbox = SimpleNamespace(run_many=run_many)

    class Opened:
        def __enter__(self) -> Any:
            return sandbox

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(module, "open_sandbox", lambda **_: Opened())
    monkeypatch.setattr(module, "count_cores", lambda: cores)
    monkeypatch.setattr(module, "read_memory_bytes", lambda: gigabytes << 30)
    assert not list(module.execute_workloads([], root=Path("/nowhere")))
    assert asked == [jobs]
