"""Running reference tests: on the CPU in the sandbox, on a GPU in processes of their own.

A GPU needs its devices, its compilers and their caches, which the sandbox denies. There a test runs with what a
serving engine is given of the environment (no tokens), in its own process group, with a time limit, under the GPU
lock; it is not confined beyond that: run the tests of a dataset whose Definitions you would run.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fib_tools.errors import ChildTimeoutError, MissingDependencyError, RequestError
from fib_tools.host.env import engine_environment
from fib_tools.host.gpu_lock import Lease, acquire
from fib_tools.host.gpus import find_memory_bytes
from fib_tools.host.process import run_command
from fib_tools.host.sandbox import Limits, Outcome, Sandbox
from fib_tools.phases._reference_tests_child import configure

__all__ = ["Record", "TestRun", "has_gpu", "run_tests"]

_ENTRY = "fib_tools.phases._reference_tests_child:run"
_MEMORY = 12 << 30
_PLAIN = (
    *("-q", "--no-header", "--tb=short", "--assert=plain", "-W", "ignore"),
    *("--disable-plugin-autoload", "-p", "no:cacheprovider"),
)
_REASON_LENGTH = 600
_FEWEST_PROCESSES = 4
_MOST_PROCESSES = 14
_BYTES_EACH = 10 << 30
"""Of the GPU's memory: the largest inputs of a test, the kernels' and the reference's copies of them."""
_SPARE_CORES = 2

Record = Mapping[str, Any]
"""What a conftest measured in one test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestRun:
    """What came of one test file."""

    __test__ = False  # pytest would take it for a test
    name: str
    """Of the Definition."""
    records: tuple[Record, ...] = ()
    problem: str = ""
    """Why there are no records."""


def has_gpu() -> bool:
    """Tell whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def run_tests(
    files: Mapping[str, Path], *, device: str, options: tuple[str, ...], time_limit: float
) -> Iterator[TestRun]:
    """Run test files by Definition name; results come as they are done.

    Raises:
        MissingDependencyError: pytest is not installed.
        RequestError: a GPU is wanted where there is none.
    """
    if find_spec("pytest") is None:
        raise MissingDependencyError("pytest", purpose="running reference tests", install="pip install pytest")
    if device == "cuda" and not has_gpu():
        raise RequestError("torch sees no GPU", todo="use --device cpu, which checks the references alone")
    if device == "cpu":
        return _run_confined(files, options, time_limit)
    return _run_on_gpu(files, options, time_limit)


def _run_confined(files: Mapping[str, Path], options: tuple[str, ...], time_limit: float) -> Iterator[TestRun]:
    names = list(files)
    roots = tuple({path.parents[2] for path in files.values()})
    limits = Limits(wall_seconds=time_limit, memory_bytes=_MEMORY)
    arguments = [*_PLAIN, "--device", "cpu", *options]
    payloads = ({"file": str(path), "folder": str(path.parent), "arguments": arguments} for path in files.values())
    preload = ("torch", "pytest", "fib_tools.phases._reference_tests_child")
    with Sandbox(preload, limits=limits, readable=roots) as sandbox:
        for outcome in sandbox.run_many(_ENTRY, payloads, jobs=2):
            yield _read_outcome(names[outcome.index], outcome)


def _read_outcome(name: str, outcome: Outcome) -> TestRun:
    answer = outcome.value or {}
    records = answer.get("records")
    if isinstance(records, list) and records:
        return TestRun(name=name, records=tuple(record for record in records if isinstance(record, dict)))
    problem = str(outcome.error) if outcome.error else _shorten(str(answer.get("tail", "pytest gave no answer")))
    return TestRun(name=name, problem=problem)


def _run_on_gpu(files: Mapping[str, Path], options: tuple[str, ...], time_limit: float) -> Iterator[TestRun]:
    with acquire(1, command="fib tests run") as lease, ThreadPoolExecutor(_count_processes(lease)) as pool:
        environment = {**engine_environment(), **lease.environment, "PYTHONDONTWRITEBYTECODE": "1"}
        how = _Setting(environment=environment, descriptors=tuple(lease.descriptors), time_limit=time_limit)
        waiting = [pool.submit(_run_one, name, path, options, how) for name, path in files.items()]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            how.stop.set()
            for future in waiting:
                future.cancel()


def _count_processes(lease: Lease) -> int:
    """Use the cores, since each process compiles its kernels, as far as the GPU's memory goes."""
    memory = min((find_memory_bytes(gpu.uuid) or 0 for gpu in lease.gpus), default=0)
    room = min((os.cpu_count() or 1) - _SPARE_CORES, memory // _BYTES_EACH)
    return max(_FEWEST_PROCESSES, min(room, _MOST_PROCESSES))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Setting:
    """What all tests of a run share."""

    environment: Mapping[str, str]
    descriptors: tuple[int, ...]
    """Of the GPU's lock, which lasts as long as the last test that has them."""
    time_limit: float
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for the tests any more: a kernel may be compiled for minutes."""


def _run_one(name: str, path: Path, options: tuple[str, ...], how: _Setting) -> TestRun:
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "records.json"
        own = ("--device", "cuda", "--records", str(records), *options)
        command = [sys.executable, "-m", "pytest", *configure(Path(folder), path.parent), *_PLAIN, *own, str(path)]
        try:
            ended = run_command(
                command,
                cwd=path.parents[2],
                timeout=how.time_limit,
                env=how.environment,
                descriptors=how.descriptors,
                stop=how.stop,
            )
        except ChildTimeoutError as error:
            return TestRun(name=name, problem=str(error))
        found = json.loads(records.read_text(encoding="utf-8")) if records.exists() else []
    if found:
        return TestRun(name=name, records=tuple(found))
    return TestRun(name=name, problem=_shorten(ended.stdout + ended.stderr) or f"pytest ended with {ended.status}")


def _shorten(text: str) -> str:
    """Keep the end, where pytest says what went wrong."""
    return text.strip()[-_REASON_LENGTH:]
