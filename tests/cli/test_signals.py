from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench_run import write_dataset
from fib_tools.cli.app import _ending_like_an_interrupt, _has_resume


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_operation_that_is_told_to_end_can_write_down_what_it_has(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as interrupt, _ending_like_an_interrupt():
        signal.raise_signal(number)
    assert interrupt.value.args == (number,)
    assert signal.getsignal(number) is before


def test_who_is_interrupted_hears_how_to_go_on() -> None:
    assert _has_resume(["bench", "--fresh"])
    assert not _has_resume(["validate"])
    assert not _has_resume([])


def test_who_reads_stderr_may_go_and_the_command_goes_on(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", {})
    command = [sys.executable, "-m", "fib_tools", "validate", "--json", "--dataset", str(tmp_path / "dataset")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 0
    assert json.loads(said)["counts"]["definition"] == 1
