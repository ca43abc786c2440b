from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.phases.context import Context, Workspace


def test_a_step_is_told_of_once_it_has_lasted_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    context = Context(workspace=Workspace(root=tmp_path), progress=lambda *what: told.append(what))
    clock = iter((10.0, 11.0, 12.0, 12.1, 13.0))
    monkeypatch.setattr("fib_tools.phases.context.time.monotonic", lambda: next(clock))
    report = context.tell_if_slow("reading")
    for done in range(4):
        report(done, 4)
    assert told == [("reading", 2, 4), ("reading", 3, 4)]
