from __future__ import annotations

import importlib
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fib_tools.render import show_progress

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_time_is_from_the_first_result_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    seconds = iter([0.0, 1.0, 2.0, 3.0, 12.0, 20.0, 60.5])
    monkeypatch.setattr("fib_tools.render.time.monotonic", lambda: next(seconds))
    log = StringIO()
    with show_progress(Console(file=log, width=200), quiet=False) as report:
        report("reading Solutions and Workloads", 1, 60)
        report("waiting for the GPU: somebody has it", 0, 0)
        report("evaluating on NVIDIA H200", 0, 3)
        report("one on rmsnorm_h7168: PASSED", 1, 3)
        report("two on rmsnorm_h7168: RUNTIME_ERROR", 2, 3)
        report("three on rmsnorm_h7168: failed", 3, 3)
    gpu_scaling = importlib.import_module("gpu_scaling")
    assert gpu_scaling.find_measuring_seconds(log.getvalue()) == 48.5
    assert gpu_scaling.find_measuring_seconds("") == 0.0
