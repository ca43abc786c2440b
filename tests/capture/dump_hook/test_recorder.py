from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fib_tools.capture.dump_hook import recorder
from fib_tools.capture.dump_hook.install import hook_traces
from fib_tools.capture.dump_hook.recorder import Recorder
from fib_tools.capture.dump_hook.watching import watch_functions

HOOK = Path(recorder.__file__).parent


def tensor(*shape: int) -> SimpleNamespace:
    return SimpleNamespace(shape=shape, dtype="torch.float32", ndim=len(shape))


class Template:
    """As much of a trace template as the recorder reads."""

    inputs = {"x": SimpleNamespace(dim_names=["m", "n"], param=None, tuple_idx=None)}  # noqa: RUF012  # a stand-in
    axes = {"m": type("Var", (), {})(), "n": type("Const", (), {})()}  # noqa: RUF012  # a stand-in


def trace(save_dir: Any = None, **arguments: Any) -> dict[str, Any]:
    assert save_dir is None
    return {"name": f"toy_n{arguments['x'].shape[1]}", "inputs": {}}


def read_calls(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in (folder / "calls").iterdir() for line in path.read_text().splitlines()]


def test_a_definition_is_written_once_and_its_calls_are_counted(tmp_path: Path) -> None:
    own = Recorder(tmp_path)
    for rows in (1, 1, 2):
        own.record(trace, "flashinfer.toy", {"x": tensor(rows, 8)}, template=Template)
    own._flush(is_due=True)
    assert [path.name for path in (tmp_path / "dumps" / "rank0").iterdir()] == ["toy_n8.json"]
    assert [(call["axes"], call["count"]) for call in read_calls(tmp_path)] == [({"m": 1}, 2), ({"m": 2}, 1)]


def test_calls_beyond_the_bound_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MOST_CALLS", 2)
    own = Recorder(tmp_path)
    for rows in range(1, 6):
        own.record(trace, "flashinfer.toy", {"x": tensor(rows, 8)}, template=Template)
    own._flush(is_due=True)
    assert [call["count"] for call in read_calls(tmp_path)] == [1, 1, 3]


def test_a_trace_that_fails_is_noted_and_the_program_goes_on(tmp_path: Path) -> None:
    def fail(**_arguments: Any) -> dict[str, Any]:
        raise ValueError("no such axis")

    assert Recorder(tmp_path).record(fail, "flashinfer.toy", {"x": tensor(1, 8)}, template=Template) == {}
    (notes,) = (tmp_path / "notes").iterdir()
    assert "no such axis" in notes.read_text(encoding="utf-8")


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    own = Recorder(tmp_path / "out")
    own.record(lambda **_: {"name": "../../escape"}, "flashinfer.toy", {"x": tensor(1, 8)}, template=Template)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_hook_on_the_same_traces_changes_nothing(tmp_path: Path) -> None:
    class TraceTemplate:
        def build_fi_trace_fn(self, _fi_api: str) -> Any:
            return trace

    module = ModuleType("template")
    module.__file__ = "template.py"
    module.TraceTemplate = TraceTemplate  # type: ignore[attr-defined]
    hook_traces(module, Recorder(tmp_path))
    hooked = TraceTemplate.build_fi_trace_fn
    hook_traces(module, Recorder(tmp_path))
    assert TraceTemplate.build_fi_trace_fn is hooked


def test_functions_that_are_watched_are_recorded_and_classes_left_alone(tmp_path: Path) -> None:
    module = ModuleType("kernels")
    module.double = lambda x, out=None: (x, out)  # type: ignore[attr-defined]
    module.Layer = dict  # type: ignore[attr-defined]
    own = Recorder(tmp_path)
    watch_functions(module, names=["double", "Layer", "missing"], recorder=own)
    assert module.double(tensor(3, 8), out=tensor(3, 4))[0].shape == (3, 8)
    assert module.Layer is dict
    (call,) = read_calls(tmp_path)
    assert call == {
        "kernel": "kernels.double",
        "tensors": {"0": "float32[*, 8]", "out": "float32[*, 4]"},
        "count": 1,
    }


def test_a_hook_that_cannot_work_does_not_stop_the_program(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    package = tmp_path / "site" / "flashinfer" / "trace"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("", encoding="utf-8")
    (package / "template.py").write_text("class Other:\n    pass\n", encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{HOOK}:{tmp_path / 'site'}",
        "FIB_DUMP_DIR": str(tmp_path / "file" / "below"),
    }
    code = "import flashinfer.trace.template as t; print(t.Other)"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "Other" in ran.stdout


def test_without_a_folder_the_hook_does_nothing() -> None:
    environment = {**os.environ, "PYTHONPATH": str(HOOK)}
    environment.pop("FIB_DUMP_DIR", None)
    code = "import sys; print([name for name in sys.modules if 'fib_dump' in name])"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
