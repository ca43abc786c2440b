from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.capture.collection import following
from fib_tools.capture.collection.collector import Collector
from fib_tools.capture.collection.following import Clock, follow_calls
from level10 import Recording


class Engine:
    """Writes a call whenever time passes, up to a number of them."""

    def __init__(self, recording: Recording, calls: int) -> None:
        self.recording = recording
        self.left = calls
        self.time = 0.0

    def pause(self, seconds: float) -> None:
        self.time += seconds
        if self.left:
            self.left -= 1
            self.recording.rmsnorm(4)


def test_calls_are_removed_as_they_come_until_none_comes_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(tmp_path)
    engine = Engine(recording, calls=50)
    monkeypatch.setattr(following, "_STEP_CALLS", 10)
    size = sum(path.stat().st_size for path in recording.rmsnorm(4).iterdir())
    collector = Collector(targets=[], limit=1)
    clock = Clock(now=lambda: engine.time, pause=engine.pause)
    follower = follow_calls(tmp_path, collector, idle_seconds=3.0, count=lambda: None, clock=clock)
    assert (collector.calls, len(list(tmp_path.iterdir()))) == (51, 1)
    assert follower.most_bytes == 10 * size
    assert 3.0 < engine.time - 50 * 0.2 < 4.0


def test_the_list_of_all_calls_does_not_grow_for_ever(tmp_path: Path) -> None:
    (tmp_path / "session.jsonl").write_bytes(b"x" * (2 << 20))
    engine = Engine(Recording(tmp_path), calls=0)
    clock = Clock(now=lambda: engine.time, pause=engine.pause)
    collector = Collector(targets=[], limit=1)
    follower = follow_calls(tmp_path, collector, idle_seconds=1.0, count=lambda: None, clock=clock)
    assert follower.most_bytes == 2 << 20
    assert (tmp_path / "session.jsonl").read_bytes() == b""


def test_an_interrupt_ends_the_waiting_and_keeps_what_was_read(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.rmsnorm(4)

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    collector = Collector(targets=[], limit=1)
    clock = Clock(now=lambda: 0.0, pause=interrupt)
    follow_calls(tmp_path, collector, idle_seconds=3.0, count=lambda: None, clock=clock)
    assert collector.calls == 1
