"""Functions that are watched still do what they did, in compiled code too."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.dump_hook.recorder import Recorder
from fib_tools.capture.dump_hook.watching import watch_functions, watch_torch

torch = pytest.importorskip("torch")


class OnGpu(torch.Tensor):  # type: ignore[misc,name-defined]  # torch is imported when it is there
    """A tensor that says it is on a GPU."""

    is_cuda = True


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in (folder / "calls").iterdir() for line in path.read_text().splitlines()]


def test_the_lengths_of_a_weight_are_all_kept_and_rows_are_not(tmp_path: Path) -> None:
    module = types.ModuleType("sglang.gate")
    exec("def product(rows, weight): return rows @ weight.T", module.__dict__)  # noqa: S102  # a module of our own
    watch_functions(module, names=["product", "missing"], recorder=Recorder(tmp_path))
    weight = torch.nn.Parameter(torch.ones(4, 8))
    for rows in (2, 3):
        assert module.product(torch.ones(rows, 8), weight).shape == (rows, 4)
    (call,) = read(tmp_path)
    assert call["tensors"] == {"0": "float32[*, 8]", "1": "float32[4, 8]"}
    assert call["kernel"] == "sglang.gate.product"


def test_torch_is_watched_on_a_gpu_only_and_can_still_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((torch.nn.functional, "linear"), (torch.nn.functional, "embedding")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for name in ("matmul", "bmm", "softmax"):
        monkeypatch.setattr(torch, name, getattr(torch, name))
    watch_torch(Recorder(tmp_path))
    logits = torch.zeros(2, 4)
    assert torch.softmax(logits, dim=-1).tolist() == [[0.25] * 4] * 2
    assert not (tmp_path / "calls").exists()
    compiled = torch.compile(lambda rows: torch.softmax(rows, dim=-1), backend="eager", fullgraph=True)
    assert compiled(logits).tolist() == [[0.25] * 4] * 2
    torch.softmax(logits.as_subclass(OnGpu), dim=-1)
    (call,) = read(tmp_path)
    assert (call["kernel"], call["tensors"]) == ("torch.softmax", {"input": "float32[*, 4]"})
