"""FP8 weights with a scale for each block, as DeepSeek-V3 published them, made whole as they are read.

Beside `q_proj.weight`, [N, K] in float8_e4m3fn, lies `q_proj.weight_scale_inv`, [ceil(N / 128), ceil(K / 128)] in float32;
weight = float8 * weight_scale_inv of its block. config.json says
`"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fib_tools.capture.checkpoints.stored import StoredTensor
from fib_tools.errors import ConfigError, FormatError

if TYPE_CHECKING:
    import torch

__all__ = ["dequantize_blocks"]

_SCALE = "_scale_inv"
_FLOAT8 = "float8_e4m3fn"


def dequantize_blocks(tensors: Mapping[str, StoredTensor], quantization: Any, *, where: str) -> dict[str, StoredTensor]:
    """Put one tensor that is read as plain numbers in the place of each float8 weight and its scales.

    Raises:
        ConfigError: the checkpoint is quantised in another way.
        FormatError: a weight has no scales, or scales have no weight.
    """
    if quantization is None:
        return dict(tensors)
    block = _read_block(quantization, where)
    plain = {name: stored for name, stored in tensors.items() if not name.endswith(_SCALE)}
    for name, stored in plain.items():
        if stored.stored_as == _FLOAT8:
            plain[name] = _pair(stored, tensors.get(name + _SCALE), block)
    lonely = [name for name in tensors if name.endswith(_SCALE) and name.removesuffix(_SCALE) not in plain]
    if lonely:
        raise FormatError(f"{lonely[0]!r} has no weight to scale", where=tensors[lonely[0]].where)
    return plain


def _read_block(quantization: Any, where: str) -> tuple[int, int]:
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    block = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    if method == "fp8" and isinstance(block, list) and len(block) == 2:
        rows, columns = block
        if type(rows) is int and type(columns) is int and rows > 0 and columns > 0:
            return rows, columns
    raise ConfigError(
        f"weights quantised with quant_method {method!r} and weight_block_size {block!r} cannot be read",
        where=where,
        todo="take the model's bfloat16 release, or one in FP8 with blocks",
    )


def _pair(stored: StoredTensor, scales: StoredTensor | None, block: tuple[int, int]) -> StoredTensor:
    if scales is None:
        raise FormatError(f"{stored.name!r} is in float8 and has no {stored.name + _SCALE!r}", where=stored.where)
    if len(stored.shape) != 2:
        raise FormatError(f"{stored.name!r} is in float8 and has {len(stored.shape)} dimensions", where=stored.where)
    expected = tuple(-(-size // edge) for size, edge in zip(stored.shape, block, strict=True))
    if scales.shape != expected:
        raise FormatError(f"{scales.name!r} has shape {scales.shape}, not {expected}", where=scales.where)

    def load(dtype: torch.dtype) -> torch.Tensor:
        return _dequantize(stored, scales, block, dtype)

    return StoredTensor(name=stored.name, shape=stored.shape, where=stored.where, stored_as=_FLOAT8, load=load)


def _dequantize(stored: StoredTensor, scales: StoredTensor, block: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Multiply a row of blocks at a time, in float32, so that no second copy of the weight is held."""
    import torch

    weight, factors = stored.read(torch.float8_e4m3fn), scales.read(torch.float32)
    whole = torch.empty(stored.shape, dtype=dtype)
    for index, row in enumerate(factors):
        rows = slice(index * block[0], (index + 1) * block[0])
        whole[rows] = weight[rows].to(torch.float32) * row.repeat_interleave(block[1])[: stored.shape[1]]
    return whole
