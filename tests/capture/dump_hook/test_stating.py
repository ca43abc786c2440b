"""The dumps of a wrapper's run() say what the wrapper holds, and FlashInfer's own writer is one that we read."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.collection.dumps import TensorFacts, list_call_folders, load_call, read_integers
from fib_tools.capture.dump_hook.recorder import Recorder
from fib_tools.capture.dump_hook.stating import hook_dumps
from fib_tools.host.env import child_environment

HOOK = Path(__file__).parents[3] / "fib_tools" / "capture" / "dump_hook"

PROGRAM = """
import torch
from flashinfer.api_logging import flashinfer_api

class BatchMadeUpWrapper:
    @flashinfer_api
    def plan(self, indptr: torch.Tensor, page_size: int, causal: bool = False) -> None:
        self._causal, self._sm_scale = causal, None

    @flashinfer_api
    def run(self, q: torch.Tensor, cache: tuple, *args, return_lse: bool = False):
        return q, cache[0]

    def forward(self, q, cache):
        self._causal, self._sm_scale = True, 0.5
        return self.run(q, cache, return_lse=True)

wrapper = BatchMadeUpWrapper()
wrapper.plan(torch.tensor([0, 2, 5], dtype=torch.int32), 1)
wrapper.forward(torch.ones(2, 4), (torch.ones(3, 4), torch.ones(3, 4)))
"""


def test_what_flashinfer_itself_writes_is_read(tmp_path: Path) -> None:
    pytest.importorskip("flashinfer")
    environment = {
        **child_environment(home=tmp_path),
        "PYTHONPATH": str(HOOK),
        "FIB_DUMP_DIR": str(tmp_path / "hook"),
        "FLASHINFER_LOGLEVEL": "10",
        "FLASHINFER_LOGDEST": str(tmp_path / "log"),
        "FLASHINFER_DUMP_DIR": str(tmp_path / "calls"),
        "FLASHINFER_DUMP_SAFETENSORS": "1",
    }
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, timeout=120)
    plan, run = (load_call(folder) for folder in list_call_folders(tmp_path / "calls"))
    assert plan is not None
    assert run is not None
    assert (plan.function, run.function) == ("BatchMadeUpWrapper.plan", "BatchMadeUpWrapper.run")
    assert plan.owner == run.owner
    assert (plan.arguments["page_size"], plan.defaults) == (1, {"causal": False})
    assert read_integers(plan.arguments["indptr"]).tolist() == [0, 2, 5]
    assert [item.shape for item in run.arguments["cache"] if isinstance(item, TensorFacts)] == [(3, 4), (3, 4)]
    assert [item.shape for item in run.results] == [(2, 4), (3, 4)]
    assert run.state == {"causal": True, "sm_scale": 0.5}
    assert plan.state == {}


def test_a_call_is_dumped_as_before_whatever_becomes_of_the_state(tmp_path: Path) -> None:
    def dump(_func: Any, _name: str, _args: Any, _kwargs: Any, self_id: int | None = None) -> str:
        del self_id
        return str(tmp_path / "gone")

    module = types.ModuleType("flashinfer.api_logging")
    module.__dict__["_dump_function_inputs"] = dump
    hook_dumps(module, recorder=Recorder(tmp_path))
    found = module.__dict__["_dump_function_inputs"](None, "AWrapper.run", (object(),), {}, self_id=1)
    assert found == str(tmp_path / "gone")
    assert "the state of AWrapper.run" in next((tmp_path / "notes").iterdir()).read_text(encoding="utf-8")


def test_a_version_without_dumps_is_left_alone(tmp_path: Path) -> None:
    module = types.ModuleType("flashinfer.api_logging")
    hook_dumps(module, recorder=Recorder(tmp_path))
    assert not hasattr(module, "_dump_function_inputs")
