from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fib_tools.host.gpu_lock import Lease
from fib_tools.phases import reference_runs
from fib_tools.phases.reference_runs import run_tests

_OPTIONS = """
def pytest_addoption(parser):
    parser.addoption("--device")
    parser.addoption("--records")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of tests on a machine that says it has a GPU."""

    @contextmanager
    def acquire(count: int, **_: Any) -> Iterator[Lease]:
        assert count == 1
        yield Lease(gpus=(), environment={}, descriptors=())

    monkeypatch.setattr(reference_runs, "acquire", acquire)
    monkeypatch.setattr(reference_runs, "has_gpu", lambda: True)
    made = tmp_path / "tests" / "references"
    made.mkdir(parents=True)
    (made / "conftest.py").write_text(_OPTIONS)
    return made


def test_tests_that_nobody_waits_for_any_more_are_ended(folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    slow, quick = folder / "test_slow.py", folder / "test_quick.py"
    slow.write_text(
        "import os, signal\n\ndef test_slow():\n"
        f"    open({str(pipe)!r}, 'w').write(str(os.getpid()))\n    signal.pause()\n"
    )
    quick.write_text("def test_quick():\n    pass\n")
    runs = run_tests({"slow": slow, "quick": quick}, device="cuda", options=(), time_limit=600)
    assert next(runs).name == "quick"
    assert select.select([reading], [], [], 60)[0], "the slow test did not begin"
    child = os.pidfd_open(int(os.read(reading, 100)))
    runs.close()  # type: ignore[attr-defined]  # it is a generator
    assert select.select([child], [], [], 0)[0], "the test still runs"
    os.close(child)
    os.close(reading)
