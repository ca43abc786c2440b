from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.checkpoints import fp8_weights
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
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "fbgemm_fp8", "weight_block_size": [128, 128]},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        "fp8",
    ],
)
def test_other_quantisations_are_refused(tmp_path: Path, quantization: Any) -> None:
    write_safetensors(make_llama(), tmp_path)
    _set_quantization(tmp_path, quantization)
    with pytest.raises(ConfigError, match="cannot be read"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("quantization", "name", "shape"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, "weight_scale", ()),
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": None}, "weight_scale_inv", ()),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "weight_scale", (1,)),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "weight_scale", (64, 1)),
        ({"quant_method": "fbgemm_fp8"}, "weight_scale", (64, 1)),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "weight_scale", ()),
    ],
)
def test_a_scale_for_a_tensor_or_for_each_row_is_taken(
    tmp_path: Path, quantization: Any, name: str, shape: tuple[int, ...]
) -> None:
    import torch

    model = make_llama()
    write_safetensors(model, tmp_path)
    _set_quantization(tmp_path, quantization)
    values, scales = (torch.randn(64, 192) / 8).to(torch.float8_e4m3fn), torch.rand(shape) + 0.5
    stem = NAME.removesuffix("weight")
    added = {NAME: values, stem + name: scales, f"{stem}input_scale": torch.ones(())}
    change_safetensors(tmp_path, lambda tensors: tensors.update(added))
    loaded = load_model(open_checkpoint(tmp_path), dtype="float32")
    true = values.float() * scales.reshape(-1, 1)
    assert loaded.state_dict()[NAME].equal(true)
    model.model.layers[0].mlp.down_proj.weight.data = true
    assert logits(loaded).equal(logits(model))


@pytest.mark.parametrize("shape", [(64,), (1, 1)])
def test_rows_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    import torch

    monkeypatch.setattr(fp8_weights, "_ROWS", 24)
    write_safetensors(make_llama(), tmp_path)
    _set_quantization(tmp_path, {"quant_method": "fp8"})
    values, scales = (torch.randn(64, 192) / 8).to(torch.float8_e4m3fn), torch.rand(shape) + 0.5
    change_safetensors(tmp_path, lambda tensors: tensors.update({NAME: values, f"{NAME}_scale": scales}))
    loaded = load_model(open_checkpoint(tmp_path), dtype="float32")
    assert loaded.state_dict()[NAME].equal(values.float() * scales.reshape(-1, 1))


def test_scales_for_something_else_are_named(tmp_path: Path) -> None:
    import torch

    write_safetensors(make_llama(), tmp_path)
    _set_quantization(tmp_path, {"quant_method": "fp8"})
    added = {NAME: torch.zeros(64, 192).to(torch.float8_e4m3fn), f"{NAME}_scale": torch.ones(192)}
    change_safetensors(tmp_path, lambda tensors: tensors.update(added))
    with pytest.raises(FormatError, match=r"has shape \(192,\): neither one scale nor one for each of 64 rows"):
        open_checkpoint(tmp_path)
    change_safetensors(tmp_path, lambda tensors: tensors.pop(f"{NAME}_scale"))
    with pytest.raises(FormatError, match=rf"has no '{NAME}_scale'"):
        open_checkpoint(tmp_path)
