"""Hugging Face's layout: `config.json` beside `model.safetensors`, or beside shards with an index.

model.safetensors.index.json: {"metadata": {...}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}

Files are mapped: a tensor that is not asked for costs no memory and no reading.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.capture.checkpoints.configs import make_config
from fib_tools.capture.checkpoints.fp8_weights import dequantize_fp8
from fib_tools.capture.checkpoints.stored import Checkpoint, StoredTensor, check_unique, count_bytes
from fib_tools.errors import FormatError
from fib_tools.host.files import read_limited
from fib_tools.host.paths import check_component
from fib_tools.model.canonical import load_json
from fib_tools.sources.config_text import parse_config

if TYPE_CHECKING:
    import torch

__all__ = ["SUFFIX", "open_safetensors"]

SUFFIX = ".safetensors"
_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIG_LIMIT = 2 << 20
_INDEX_LIMIT = 64 << 20
"""DeepSeek-V3's index, with 91,991 tensors, has 9 MB."""
_TORCH_NAMES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
}


def open_safetensors(folder: Path, files: tuple[Path, ...] | None = None, *, origin: str | None = None) -> Checkpoint:
    """Open a folder, or given files of it, and read names and shapes.

    Raises:
        ConfigError: there is no config that transformers takes.
        FormatError: a file is missing, cut off, or says something that cannot be.
        PathError: the index names a file outside the folder.
    """
    fields = parse_config(read_limited(folder / _CONFIG, _CONFIG_LIMIT), where=str(folder / _CONFIG))
    config = make_config(fields, where=str(folder / _CONFIG))
    paths = files or _list_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        for stored in _list_tensors(path):
            check_unique(stored.name, tensors, str(path))
            tensors[stored.name] = stored
    return Checkpoint(
        config=config,
        origin=origin or str(folder),
        format="safetensors",
        bytes=count_bytes(paths),
        tensors=dequantize_fp8(tensors, fields.get("quantization_config"), where=str(folder / _CONFIG)),
    )


def _list_files(folder: Path) -> tuple[Path, ...]:
    """Take what the index names, else the one file, else every safetensors file there is."""
    if (folder / _INDEX).is_file():
        return _read_index(folder)
    if (folder / _SINGLE).is_file():
        return (folder / _SINGLE,)
    files = tuple(sorted(folder.glob(f"*{SUFFIX}")))
    if not files:
        raise FormatError("there is no safetensors file", where=str(folder), todo="pass the folder with the weights")
    return files


def _read_index(folder: Path) -> tuple[Path, ...]:
    path = folder / _INDEX
    document = load_json(read_limited(path, _INDEX_LIMIT), where=str(path))
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise FormatError("the index has no weight_map of names to files", where=str(path), todo="fetch it again")
    # not resolved: the hub's cache keeps links to its blobs, which have other names
    files = tuple(folder / check_component(name) for name in sorted(set(weight_map.values())))
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        todo = "fetch the missing shards"
        raise FormatError(f"the index names {', '.join(absent[:5])}, which are not there", where=str(path), todo=todo)
    return files


def _list_tensors(path: Path) -> list[StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(str(path), framework="pt", device="cpu")
        names = list(opened.keys())
        slices = {name: opened.get_slice(name) for name in names}
        return [_describe(name, slices[name], opened, path) for name in names]
    except (SafetensorError, OSError) as error:
        todo = "fetch the file again: it is cut off or damaged"
        raise FormatError(f"not a whole safetensors file: {str(error)[:300]}", where=str(path), todo=todo) from error


def _describe(name: str, entry: Any, opened: Any, path: Path) -> StoredTensor:
    def load(dtype: torch.dtype) -> torch.Tensor:
        value: torch.Tensor = opened.get_tensor(name)
        return value.to(dtype)

    kind = str(entry.get_dtype())
    return StoredTensor(
        name=name,
        shape=tuple(int(size) for size in entry.get_shape()),
        where=str(path),
        stored_as=_TORCH_NAMES.get(kind, kind),
        load=load,
    )
