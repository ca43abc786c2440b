"""FP8 weights and their scales, made whole as they are read.

Beside `q_proj.weight`, [N, K] in float8_e4m3fn, lie its scales in float32: weight = float8 * scale. As config.json's
`quantization_config` has it, that is one scale for each

- block: `q_proj.weight_scale_inv`, [ceil(N / 128), ceil(K / 128)], with `{"quant_method": "fp8", "fmt": "e4m3",
  "weight_block_size": [128, 128]}`, as DeepSeek-V3 published them;
- tensor or row: `q_proj.weight_scale`, [] or [1], or [N, 1], with `fp8` and no block size, `fbgemm_fp8`, `modelopt` (FP8),
  or `compressed-tensors` (float-quantized). Scales of activations, `q_proj.input_scale`, are no weights, and left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fib_tools.capture.checkpoints.stored import StoredTensor
from fib_tools.errors import ConfigError, FormatError

if TYPE_CHECKING:
    import torch

__all__ = ["dequantize_fp8"]

_SCALES = ("_scale_inv", "_scale")
"""Behind the weight's name."""
_ACTIVATIONS = (".input_scale", ".input_scale_ub")
"""In place of `.weight`."""
_FLOAT8 = "float8_e4m3fn"
_ROWS = 1024
"""Read at a time where there is one scale for each row, or one for all."""


def dequantize_fp8(tensors: Mapping[str, StoredTensor], quantization: Any, *, where: str) -> dict[str, StoredTensor]:
    """Put one tensor that is read as plain numbers in the place of each float8 weight and its scales.

    Raises:
        ConfigError: the checkpoint is quantised in another way.
        FormatError: a weight has no scales, or scales have no weight.
    """
    if quantization is None:
        return dict(tensors)
    block = _read_block(quantization, where)
    plain = {name: stored for name, stored in tensors.items() if not _is_beside(name, tensors)}
    for name, stored in plain.items():
        if _is_float8(stored):
            plain[name] = _pair(stored, _find_scales(stored, tensors, block), block)
    return plain


def _read_block(quantization: Any, where: str) -> tuple[int, int] | None:
    """Read the size of a block; None where scales stand for rows or whole tensors."""
    fields = quantization if isinstance(quantization, dict) else {}
    method, block = fields.get("quant_method"), fields.get("weight_block_size")
    if method == "fp8" and isinstance(block, list) and len(block) == 2:
        rows, columns = block
        if type(rows) is int and type(columns) is int and rows > 0 and columns > 0:
            return rows, columns
    if block is None and _has_plain_scales(fields):
        return None
    raise ConfigError(
        f"weights quantised with quant_method {method!r} and weight_block_size {block!r} cannot be read",
        where=where,
        todo="take the model's bfloat16 release, or one in FP8",
    )


def _has_plain_scales(fields: Mapping[str, Any]) -> bool:
    match fields.get("quant_method"):
        case "fp8" | "fbgemm_fp8":
            return True
        case "modelopt":
            return fields.get("quant_algo") == "FP8"
        case "compressed-tensors":
            return fields.get("format") == "float-quantized"
    return False


def _is_beside(name: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Tell whether a tensor only says how another one is scaled.

    Raises:
        FormatError: the weight that it scales is not there.
    """
    for suffix in _ACTIVATIONS:
        if name.endswith(suffix):
            return _is_float8(tensors.get(f"{name.removesuffix(suffix)}.weight"))
    scaled = next((name.removesuffix(suffix) for suffix in _SCALES if name.endswith(suffix)), None)
    if scaled is None:
        return False
    inverse = name.endswith(_SCALES[0])  # nothing else is called so; some models have parameters that end in _scale
    if scaled not in tensors and (inverse or scaled.endswith(".weight")):
        raise FormatError(f"{name!r} has no weight to scale", where=tensors[name].where)
    return inverse or _is_float8(tensors.get(scaled))


def _is_float8(stored: StoredTensor | None) -> bool:
    return stored is not None and stored.stored_as == _FLOAT8


def _find_scales(
    stored: StoredTensor, tensors: Mapping[str, StoredTensor], block: tuple[int, int] | None
) -> StoredTensor:
    names = [stored.name + suffix for suffix in (_SCALES[:1] if block else _SCALES)]
    found = [tensors[name] for name in names if name in tensors]
    if not found:
        raise FormatError(f"{stored.name!r} is in float8 and has no {names[-1]!r}", where=stored.where)
    return found[0]


def _pair(stored: StoredTensor, scales: StoredTensor, block: tuple[int, int] | None) -> StoredTensor:
    if len(stored.shape) != 2:
        raise FormatError(f"{stored.name!r} is in float8 and has {len(stored.shape)} dimensions", where=stored.where)
    _check_scales(stored, scales, block)

    def load(dtype: torch.dtype) -> torch.Tensor:
        return _scale_blocks(stored, scales, block, dtype) if block else _scale_rows(stored, scales, dtype)

    return StoredTensor(name=stored.name, shape=stored.shape, where=stored.where, stored_as=_FLOAT8, load=load)


def _check_scales(stored: StoredTensor, scales: StoredTensor, block: tuple[int, int] | None) -> None:
    if block:
        expected = tuple(-(-size // edge) for size, edge in zip(stored.shape, block, strict=True))
        if scales.shape != expected:
            raise FormatError(f"{scales.name!r} has shape {scales.shape}, not {expected}", where=scales.where)
        return
    rows = stored.shape[0]
    if scales.shape not in {(), (1,), (1, 1), (rows,), (rows, 1)}:
        what = f"{scales.name!r} has shape {scales.shape}: neither one scale nor one for each of {rows} rows"
        raise FormatError(what, where=scales.where)


def _scale_blocks(
    stored: StoredTensor, scales: StoredTensor, block: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Multiply a row of blocks at a time, in float32, so that no second copy of the weight is held."""
    import torch

    weight, factors = stored.read(torch.float8_e4m3fn), scales.read(torch.float32)
    whole = torch.empty(stored.shape, dtype=dtype)
    for index, row in enumerate(factors):
        rows = slice(index * block[0], (index + 1) * block[0])
        whole[rows] = weight[rows].to(torch.float32) * row.repeat_interleave(block[1])[: stored.shape[1]]
    return whole


def _scale_rows(stored: StoredTensor, scales: StoredTensor, dtype: torch.dtype) -> torch.Tensor:
    import torch

    weight = stored.read(torch.float8_e4m3fn)
    factors = scales.read(torch.float32).reshape(-1, 1).expand(stored.shape[0], 1)
    whole = torch.empty(stored.shape, dtype=dtype)
    for start in range(0, stored.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        whole[rows] = weight[rows].to(torch.float32) * factors[rows]
    return whole
