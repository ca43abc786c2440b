"""Light dumps say of a call what FlashInfer's own say, but for the values of large tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.collection.dumps import TensorFacts, list_call_folders, load_call, read_integers
from fib_tools.host.env import child_environment

HOOK = Path(__file__).parents[3] / "fib_tools" / "capture" / "dump_hook"

PROGRAM = """
import torch
from flashinfer.api_logging import flashinfer_api

class BatchMadeUpWrapper:
    @flashinfer_api
    def plan(self, indptr: torch.Tensor, page_size: int, kind: torch.dtype = torch.bfloat16) -> None:
        self._causal = True

    @flashinfer_api
    def run(self, q: torch.Tensor, cache: tuple, *args, return_lse: bool = False):
        return q, cache[0]

@flashinfer_api
def fails(x):
    raise ValueError

wrapper = BatchMadeUpWrapper()
wrapper.plan(torch.arange(100_000, dtype=torch.int32), 1)
cache = torch.zeros(10_000, 128)
cache[1:4] = 3.0
wrapper.run(torch.full((2, 4), 2.0), (cache, cache.bfloat16()), return_lse=True)
try:
    fails(torch.ones(3))
except ValueError:
    pass
"""


def dump(folder: Path, **more: str) -> list[Any]:
    environment = {
        **child_environment(home=folder),
        "PYTHONPATH": str(HOOK),
        "FIB_DUMP_DIR": str(folder / "hook"),
        "FLASHINFER_LOGLEVEL": "10",
        "FLASHINFER_LOGDEST": str(folder / "log"),
        "FLASHINFER_DUMP_DIR": str(folder / "calls"),
        "FLASHINFER_DUMP_SAFETENSORS": "1",
        **more,
    }
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, timeout=120)
    return [load_call(path) for path in list_call_folders(folder / "calls")]


def without_folders(value: Any) -> Any:
    if isinstance(value, TensorFacts):
        return (value.shape, value.dtype, value.key, value.is_output)
    if isinstance(value, tuple):
        return tuple(map(without_folders, value))
    return value


def test_they_say_the_same_in_a_fraction_of_the_bytes(tmp_path: Path) -> None:
    pytest.importorskip("flashinfer")
    whole = dump(tmp_path / "whole")
    light = dump(tmp_path / "light", FIB_DUMP_LIGHT="1")
    assert [call and call.function for call in light] == ["BatchMadeUpWrapper.plan", "BatchMadeUpWrapper.run", None]
    for ours, theirs in zip(light, whole, strict=True):
        if theirs is None:
            continue
        for name in ("module", "function", "arguments", "defaults", "results", "state"):
            first, second = getattr(ours, name), getattr(theirs, name)
            if isinstance(first, dict):
                first, second = ({k: without_folders(v) for k, v in each.items()} for each in (first, second))
            assert without_folders(first) == without_folders(second), name
    plan, run, _ = light
    assert plan.owner == run.owner
    assert read_integers(plan.arguments["indptr"]).tolist() == list(range(100_000))
    assert run.arguments["q"].scale is None
    assert [item.scale for item in run.arguments["cache"]] == [pytest.approx(3.0)] * 2

    def weigh(folder: Path) -> int:
        return sum(path.stat().st_size for path in (folder / "calls").rglob("*run*/*.safetensors"))

    assert weigh(tmp_path / "light") * 100 < weigh(tmp_path / "whole")


def test_what_is_left_out_by_flashinfers_own_filter_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("flashinfer")
    calls = dump(tmp_path, FIB_DUMP_LIGHT="1", FLASHINFER_DUMP_INCLUDE="*.plan")
    assert [call.function for call in calls] == ["BatchMadeUpWrapper.plan"]


def test_a_disk_that_refuses_does_not_end_the_engine(tmp_path: Path) -> None:
    pytest.importorskip("flashinfer")
    (tmp_path / "calls").write_text("no folder")
    with pytest.raises(NotADirectoryError):
        dump(tmp_path, FIB_DUMP_LIGHT="1")
    notes = "".join(path.read_text() for path in (tmp_path / "hook" / "notes").iterdir())
    assert "the dump of BatchMadeUpWrapper.plan" in notes
