"""The data of a GGUF file, mapped, and dequantised a few rows at a time.

Rows are stored in blocks of one GGML type: 32 values and a scale for Q8_0, 256 values with scales of parts for Q4_K, Q6_K.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.capture.checkpoints.gguf_header import GgufTensor
from fib_tools.errors import FormatError

if TYPE_CHECKING:
    import torch

__all__ = ["ValueReader"]

_CHUNK = 8 << 20
"""Values that are held in float32 at a time."""


class ValueReader:
    """Reads tensors of one file."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.path = path
        try:
            # copy-on-write: torch wants memory that it may write to, and the file must stay as it is
            self._data = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError) as error:
            raise FormatError(f"cannot be mapped: {error}", where=str(path), todo="pass a GGUF file") from error

    @property
    def bytes(self) -> memoryview:
        """The whole file."""
        return memoryview(self._data)  # type: ignore[arg-type]  # numpy's stubs do not know it for a buffer

    def check(self, tensor: GgufTensor) -> str:
        """Tell the name of a tensor's type.

        Raises:
            FormatError: the type is not known, its blocks do not fill the rows, or the file ends before the tensor.
        """
        import gguf

        try:
            kind = gguf.GGMLQuantizationType(tensor.type_code)
        except ValueError as error:
            todo = "upgrade gguf"
            raise FormatError(
                f"{tensor.name!r} has type {tensor.type_code}", where=str(self.path), todo=todo
            ) from error
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if tensor.shape[-1] % block:
            raise FormatError(f"rows of {tensor.name!r} are no whole {kind.name} blocks", where=str(self.path))
        if tensor.offset + math.prod(tensor.shape) // block * size > len(self._data):
            todo = "fetch the file again: it is cut off"
            raise FormatError(f"the file ends before the end of {tensor.name!r}", where=str(self.path), todo=todo)
        return str(kind.name)

    def read(self, tensor: GgufTensor, dtype: torch.dtype, *, index: int | None = None) -> torch.Tensor:
        """Read a tensor, or one entry of its first dimension."""
        import torch

        rows, shape = self._find_rows(tensor, index)
        plain = self._view_plain(tensor, rows)
        if plain is not None:
            return plain.reshape(shape).to(dtype)
        whole = torch.empty((rows.shape[0], shape[-1]), dtype=dtype)
        step = max(1, _CHUNK // shape[-1])
        for start in range(0, rows.shape[0], step):
            whole[start : start + step] = self._dequantize(tensor, rows[start : start + step])
        return whole.reshape(shape)

    def _find_rows(self, tensor: GgufTensor, index: int | None) -> tuple[Any, tuple[int, ...]]:
        """Give the bytes of a tensor, [rows, bytes of a row], and its shape."""
        import gguf

        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.type_code)]
        shape = tensor.shape if index is None else tensor.shape[1:]
        count = math.prod(shape) // block * size
        start = tensor.offset + (0 if index is None else index * count)
        rows = self._data[start : start + count].reshape(math.prod(shape[:-1]), shape[-1] // block * size)
        return rows, shape

    @staticmethod
    def _view_plain(tensor: GgufTensor, rows: Any) -> torch.Tensor | None:
        """View numbers that torch knows as they lie in the file."""
        import gguf
        import torch

        kinds = gguf.GGMLQuantizationType
        plain = {kinds.F32: torch.float32, kinds.F16: torch.float16, kinds.BF16: torch.bfloat16}
        kind = plain.get(kinds(tensor.type_code))
        return None if kind is None else torch.from_numpy(rows).view(kind)

    def _dequantize(self, tensor: GgufTensor, rows: Any) -> torch.Tensor:
        import gguf
        import torch

        try:
            return torch.from_numpy(gguf.dequantize(rows, gguf.GGMLQuantizationType(tensor.type_code)))
        except NotImplementedError as error:
            todo = "take a file with F16, BF16, Q8_0, Q4_K or Q6_K"
            raise FormatError(
                f"{tensor.name!r} cannot be dequantised: {error}", where=str(self.path), todo=todo
            ) from error
