"""What a checkpoint is, whatever its format: a config, and tensors under the names that Hugging Face checkpoints use.

The names are those of the model's safetensors release, `model.layers.0.self_attn.q_proj.weight` for instance.
Each tensor knows its shape and where it lies; nothing of its values is read before `StoredTensor.read`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fib_tools.errors import FormatError

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "Format", "StoredTensor", "check_unique", "count_bytes"]

Format = Literal["safetensors", "pth", "gguf"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint, not read yet."""

    name: str
    """As Hugging Face checkpoints call it."""
    shape: tuple[int, ...]
    """Outermost dimension first, as torch has it."""
    where: str
    """Its file, and its name there if that is another one."""
    stored_as: str
    """Its type in the file: a torch dtype such as `bfloat16`, or a GGML type such as `Q4_K`."""
    load: Callable[[torch.dtype], torch.Tensor] = field(repr=False)
    """Gives the values in the dtype that is asked for, on the CPU; it may be a view of the mapped file."""

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """Read the values.

        Raises:
            FormatError: the file gives another shape than it has announced.
        """
        value = self.load(dtype)
        if tuple(value.shape) != self.shape:
            raise FormatError(
                f"{self.name!r} has shape {tuple(value.shape)}, and was announced with {self.shape}",
                where=self.where,
                todo="fetch the file again",
            )
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The weights of one model on disk."""

    config: Any = field(repr=False)
    """A transformers config of the whole model."""
    origin: str
    """The folder or file, and the repository if it came from the hub's cache."""
    format: Format
    bytes: int
    """Of all its weight files together."""
    tensors: Mapping[str, StoredTensor] = field(repr=False)


def check_unique(name: str, tensors: Mapping[str, StoredTensor], where: str) -> None:
    """Refuse a second tensor of the same name.

    Raises:
        FormatError: naming both places.
    """
    if name in tensors:
        raise FormatError(
            f"{name!r} is there twice: in {tensors[name].where} and in {where}",
            where=where,
            todo="remove the file that does not belong to this checkpoint",
        )


def count_bytes(paths: Any) -> int:
    """Add up the sizes of files."""
    return sum(path.stat().st_size for path in paths)
