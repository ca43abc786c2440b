from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.checkpoints.loading import load_model
from fib_tools.capture.checkpoints.opening import open_checkpoint
from fib_tools.errors import ConfigError, FormatError
from tiny_checkpoints import change_safetensors, logits, make_llama, write_safetensors

NAME = "model.layers.0.mlp.down_proj.weight"


def _set_quantization(folder: Path, quantization: Any) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | {"quantization_config": quantization}
    path.write_text(json.dumps(fields), encoding="utf-8")


def _write_quantized(folder: Path, model: Any, rows: int = 48, columns: int = 128) -> Any:
    """Write one weight, [64, 192], in FP8; return what it means."""
    import torch

    write_safetensors(model, folder)
    _set_quantization(folder, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [rows, columns]})
    values = (torch.randn(64, 192) / 8).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-64 // rows), -(-192 // columns)) + 0.5
    change_safetensors(folder, lambda tensors: tensors.update({NAME: values, f"{NAME}_scale_inv": scales}))
    spread = scales.repeat_interleave(rows, dim=0)[:64].repeat_interleave(columns, dim=1)[:, :192]
    return values.float() * spread


def test_blocks_are_multiplied_by_their_scales(tmp_path: Path) -> None:
    model = make_llama()
    true = _write_quantized(tmp_path, model)
    loaded = load_model(open_checkpoint(tmp_path), dtype="float32")
    assert loaded.state_dict()[NAME].equal(true)
    model.model.layers[0].mlp.down_proj.weight.data = true
    assert logits(loaded).equal(logits(model))


def test_a_weight_without_scales_is_named(tmp_path: Path) -> None:
    _write_quantized(tmp_path, make_llama())
    change_safetensors(tmp_path, lambda tensors: tensors.pop(f"{NAME}_scale_inv"))
    with pytest.raises(FormatError, match=rf"'{NAME}' is in float8 and has no '{NAME}_scale_inv'"):
        open_checkpoint(tmp_path)


def test_scales_without_a_weight_are_named(tmp_path: Path) -> None:
    _write_quantized(tmp_path, make_llama())
    change_safetensors(tmp_path, lambda tensors: tensors.pop(NAME))
    with pytest.raises(FormatError, match=f"'{NAME}_scale_inv' has no weight to scale"):
        open_checkpoint(tmp_path)


def test_scales_of_other_blocks_are_named(tmp_path: Path) -> None:
    _write_quantized(tmp_path, make_llama())
    _set_quantization(tmp_path, {"quant_method": "fp8", "weight_block_size": [16, 128]})
    with pytest.raises(FormatError, match=r"has shape \(2, 2\), not \(4, 2\)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8"},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        "fp8",
    ],
)
def test_other_quantisations_are_refused(tmp_path: Path, quantization: Any) -> None:
    write_safetensors(make_llama(), tmp_path)
    _set_quantization(tmp_path, quantization)
    with pytest.raises(ConfigError, match="cannot be read"):
        open_checkpoint(tmp_path)
