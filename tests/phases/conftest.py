from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import submittable
import tiny_model
from fib_tools.architecture.structure_schema import NotTraceable
from fib_tools.capture.engine import EngineOptions, RunOutcome, make_runs
from fib_tools.gate.gate import admit
from fib_tools.gate.templates import TemplateResult
from fib_tools.host.gpu_lock import Lease
from fib_tools.phases import candidates, collect_serving, dumps, serving, staging, survey
from fib_tools.phases.context import Context, Workspace

CHILD = Path(__file__).with_name("serving_engine.py")


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all, so that FlashInfer's source is read once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True, scope="module")
def environment(cache_home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        for name in ("FIB_WORKSPACE", "FIB_OFFLINE", "HF_HUB_OFFLINE", "NO_COLOR"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def submittable_workspace(cache_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that is ready to be submitted; tests copy it."""
    folder = tmp_path_factory.mktemp("submittable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        submittable.make_workspace(folder)
    return folder / "work"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(workspace=Workspace(root=tmp_path / "work"), offline=True)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny model's config with other values; None leaves a field out."""

    def write(**changes: Any) -> Path:
        fields = {name: value for name, value in {**tiny_model.CONFIG, **changes}.items() if value is not None}
        path = tmp_path / "config.json"
        path.write_text(json.dumps(fields), encoding="utf-8")
        return path

    return write


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the structural trace, which takes seconds and is not what the test is about."""
    _leave_out_the_trace(monkeypatch)


def _leave_out_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        survey, "_trace", lambda _config: NotTraceable(model_type="llama", reason="left out by the test")
    )


@pytest.fixture
def quick_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out every child: nothing is traced, no template instantiated, no reference executed."""
    _leave_out_the_trace(monkeypatch)

    def instantiate(calls: Sequence[Any], **_: Any) -> list[TemplateResult]:
        return [TemplateResult(fi_api=call.fi_api, reason="left out by the test") for call in calls]

    monkeypatch.setattr(candidates, "instantiate", instantiate)
    for module in (staging, dumps):
        monkeypatch.setattr(module, "open_sandbox", nullcontext)
        monkeypatch.setattr(module, "admit", partial(admit, execute=False))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, untraced: None) -> list[Any]:
    """A machine with one GPU and an engine that stands in for SGLang; gives the runs that were made."""
    del untraced
    found: list[Any] = []

    @contextmanager
    def acquire(count: int, **_: Any) -> Iterator[Lease]:
        assert count == 1
        yield Lease(gpus=(), environment={}, descriptors=())

    def make(runs: Any, folder: Path, options: EngineOptions) -> tuple[RunOutcome, ...]:
        found.extend(runs)
        return make_runs(runs, folder, replace(options, child=CHILD))

    monkeypatch.setattr(serving, "acquire", acquire)
    monkeypatch.setattr(collect_serving, "check_machine", lambda **_: None)
    monkeypatch.setattr(collect_serving, "make_runs", make)
    return found
