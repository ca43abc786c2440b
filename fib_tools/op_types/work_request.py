"""What an op_type may look at to say how much work one call is, and what it says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fib_tools.model.definition import Definition, DType

if TYPE_CHECKING:
    import torch

__all__ = ["Work", "WorkRequest"]

_UNITS: Mapping[DType, str] = {
    DType.BFLOAT16: "bf16",
    DType.FLOAT16: "bf16",
    DType.FLOAT8_E4M3FN: "fp8",
    DType.FLOAT8_E5M2: "fp8",
    DType.FLOAT4_E2M1: "fp4",
}

_BYTES: Mapping[DType, int] = {
    DType.FLOAT32: 4,
    DType.FLOAT16: 2,
    DType.BFLOAT16: 2,
    DType.INT64: 8,
    DType.INT32: 4,
    DType.INT16: 2,
}
"""Of one element; 1 for all others, float4_e2m1 among them, whose elements are pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The least that any correct kernel must do in one call."""

    read: int
    """Bytes of inputs that must be read, each once. Structure is left out, since `setup` may have read it before."""
    written: int
    """Bytes of outputs, each once; what fits the L2 cache need not have reached memory when the kernel ends."""
    flops: int = 0
    """Of the products that cannot be avoided: two for a multiplication and its addition."""
    unit: str = "fp32"
    """The fastest arithmetic that can do them: bf16, fp8, fp4, tf32 or fp32."""

    @property
    def bytes(self) -> int:
        """All bytes."""
        return self.read + self.written


@dataclass(frozen=True, kw_only=True)
class WorkRequest:
    """One call: a Definition, the length of every axis, and the inputs."""

    definition: Definition
    axes: Mapping[str, int]
    inputs: Mapping[str, Any]

    def has(self, *names: str) -> bool:
        """Tell whether all of these are inputs, as a Definition of another author may call them otherwise."""
        return all(name in self.definition.inputs for name in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The concrete shape of an input or output."""
        spec = self.definition.inputs.get(name) or self.definition.outputs[name]
        return tuple(self.axes[axis] for axis in spec.shape or ())

    def unit(self, name: str) -> str:
        """The tensor cores' arithmetic for an input's element type; float32 has tf32."""
        return _UNITS.get(self.definition.inputs[name].dtype, "tf32")

    def read(self, *names: str) -> int:
        """Count the bytes of whole inputs; elements that share storage count once."""
        return sum(self.read_rows(name, math.prod(self._stored(name)[:1])) for name in names)

    def read_rows(self, name: str, rows: int, *, leading: int = 1) -> int:
        """Count the bytes of so many different rows of an input, whose first `leading` axes number them."""
        stored = self._stored(name)
        held = min(rows, math.prod(stored[:leading]))
        return held * math.prod(stored[leading:]) * self._width(name)

    def written(self, *names: str) -> int:
        """Count the bytes of whole outputs, of all if none is named."""
        return sum(math.prod(self.shape(name)) * self._width(name) for name in names or self.definition.outputs)

    def written_rows(self, name: str, rows: int, *, leading: int = 1) -> int:
        """Count the bytes of so many rows of an output."""
        shape = self.shape(name)
        return min(rows, math.prod(shape[:leading])) * math.prod(shape[leading:]) * self._width(name)

    def integers(self, name: str) -> torch.Tensor:
        """Give an integer input as int64 on the CPU."""
        import torch

        value = self.inputs[name]
        return torch.as_tensor(value).to(device="cpu", dtype=torch.int64)

    def count_distinct(self, name: str) -> int:
        """Count the different numbers of an integer input that are not below 0."""
        numbers = self.integers(name)
        return int(numbers[numbers >= 0].unique().numel())

    def find_constant(self, name: str) -> int | None:
        """Find a constant that the reference sets to a whole number, such as `TOP_K = 8`."""
        found = re.search(rf"^\s*{name} = (\d+)\s*$", self.definition.reference, re.MULTILINE)
        return int(found[1]) if found else None

    def select_values(self, dtypes: Iterable[DType]) -> list[str]:
        """Name the tensor inputs of these element types, in calling order."""
        wanted = frozenset(dtypes)
        specs = self.definition.inputs.items()
        return [name for name, spec in specs if spec.shape is not None and spec.dtype in wanted]

    def _stored(self, name: str) -> tuple[int, ...]:
        """The input's shape, with one for axes along which storage is shared."""
        shape = self.shape(name)
        value: Any = self.inputs.get(name)
        strides = value.stride() if hasattr(value, "stride") and tuple(value.shape) == shape else (1,) * len(shape)
        return tuple(min(length, 1) if stride == 0 else length for length, stride in zip(shape, strides, strict=True))

    def _width(self, name: str) -> int:
        spec = self.definition.inputs.get(name) or self.definition.outputs[name]
        return _BYTES.get(spec.dtype, 1)
