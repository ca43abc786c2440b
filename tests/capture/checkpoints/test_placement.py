from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from fib_tools.capture.checkpoints import placement
from fib_tools.capture.checkpoints.loading import load_model
from fib_tools.capture.checkpoints.opening import open_checkpoint
from fib_tools.capture.forward.observe import observe
from fib_tools.errors import MissingDependencyError, StorageError
from tiny_checkpoints import DEEPSEEK, LLAMA, QWEN3_MOE, logits, make_model, write_safetensors

every_kind = pytest.mark.parametrize(
    "fields", [LLAMA, LLAMA | {"tie_word_embeddings": True}, QWEN3_MOE, DEEPSEEK], ids=["llama", "tied", "moe", "mla"]
)


def has_room(monkeypatch: pytest.MonkeyPatch, room: Mapping[int | str, int]) -> None:
    monkeypatch.setattr(placement, "_measure_room", lambda _model, _whole: dict(room))


def find_mapped(model: Any) -> set[str]:
    return {name for name, each in model.named_parameters() if each.untyped_storage().filename is not None}


def count(model: Any) -> list[tuple[str, int]]:
    ids = torch.arange(3, 21).reshape(2, 9)
    with torch.no_grad(), observe(model) as watch:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)
    return sorted((repr(tally.call), tally.count) for tally in watch.tallies)


@every_kind
def test_what_memory_has_no_room_for_lies_on_the_disk(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(write_safetensors(make_model(fields), tmp_path / "hf"))
    plain = load_model(checkpoint, dtype="float32")
    has_room(monkeypatch, {"cpu": sum(each.nbytes for each in plain.parameters()) // 2})
    folder = tmp_path / "work"
    folder.mkdir()
    spread = load_model(checkpoint, dtype="float32", spread=folder)
    assert set() < find_mapped(spread) < set(dict(spread.named_parameters()))
    assert list(folder.iterdir()) == [], "their names are gone already"
    assert logits(spread).equal(logits(plain))
    assert count(spread) == count(plain)


def test_what_has_room_is_not_written_to_the_disk(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_safetensors(make_model(LLAMA), tmp_path / "hf"))
    assert find_mapped(load_model(checkpoint, spread=tmp_path)) == set()


def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint = open_checkpoint(write_safetensors(make_model(LLAMA), tmp_path / "hf"))
    has_room(monkeypatch, {"cpu": 20_000})
    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(StorageError, match="the disk is full"):
        load_model(checkpoint, spread=tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["hf"]


def test_without_accelerate_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(write_safetensors(make_model(LLAMA), tmp_path / "hf"))
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fib-tools\[trace\]'"):
        load_model(checkpoint, spread=tmp_path)


@every_kind
def test_what_a_gpu_has_no_room_for_is_brought_to_it(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*arguments: Any, **options: Any) -> dict[str, Any]:
        """Plan for a GPU, and have the processor stand in for it: as an object it is not taken for the host."""
        return {path: gpu if device == 0 else device for path, device in original(*arguments, **options).items()}

    gpu, original = torch.device("cpu"), accelerate.infer_auto_device_map
    monkeypatch.setattr(accelerate, "infer_auto_device_map", plan)
    checkpoint = open_checkpoint(write_safetensors(make_model(fields), tmp_path / "hf"))
    plain = load_model(checkpoint)
    size = sum(each.nbytes for each in plain.parameters())
    has_room(monkeypatch, {0: size // 2, "cpu": size // 4})
    spread = load_model(checkpoint, spread=tmp_path)
    assert set(spread.hf_device_map.values()) == {gpu, "cpu"}
    assert {each.device.type for each in spread.parameters()} == {"cpu", "meta"}
    assert count(spread) == count(plain)
