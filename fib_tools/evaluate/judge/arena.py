"""Memory of the judge's that a runner writes outputs to: CUDA memory by IPC, or an unnamed file on a CPU.

Each arena on a GPU has an allocation of its own: a handle opens the whole allocation, and nothing else may lie in it.
"""

from __future__ import annotations

import mmap
import os
import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Arena"]

_POISONS = (0xFF, 0x7F)
"""NaN in every floating format, and a number that no kernel gives: an output that happens to be the one is not the other."""


class Arena:
    """Bytes that the judge reads and one runner at a time writes."""

    def __init__(self, size: int, device: str) -> None:
        import torch

        self.bytes = max(size, 1 << 21)
        self._descriptor = -1
        self._turn = 0
        if device == "cpu":
            self._descriptor = os.memfd_create("fib-arena")
            os.ftruncate(self._descriptor, self.bytes)
            self.memory = torch.frombuffer(mmap.mmap(self._descriptor, self.bytes), dtype=torch.uint8)
            return
        self._pool = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(self._pool):
            self.memory = torch.empty(self.bytes, dtype=torch.uint8, device=device)

    def poison(self, size: int) -> int:
        """Fill the first bytes with what no kernel gives, another pattern each time; give the pattern."""
        self._turn = 1 - self._turn
        pattern = _POISONS[self._turn]
        self.memory[:size].fill_(pattern)
        self._settle()
        return pattern

    def copy(self, size: int) -> torch.Tensor:
        """Put the first bytes aside; they are read before this returns, so that a runner may write again."""
        copied = self.memory[:size].clone()
        self._settle()
        return copied

    def restore(self, copied: torch.Tensor) -> None:
        """Put back what was put aside."""
        self.memory[: len(copied)].copy_(copied)
        self._settle()

    def _settle(self) -> None:
        if self._descriptor < 0:
            import torch

            torch.cuda.synchronize()

    def offer(self) -> tuple[dict[str, Any], int | None]:
        """Give the message by which a runner maps this memory, and the open file that goes with it on a CPU."""
        if self._descriptor >= 0:
            return {"do": "arena", "bytes": self.bytes}, self._descriptor
        from torch.multiprocessing.reductions import reduce_tensor

        recipe: Any = reduce_tensor(self.memory)
        return {"do": "arena", "handle": pickle.dumps(recipe).hex()}, None

    def close(self) -> None:
        """Give the memory back; runners must have let go of it."""
        del self.memory
        if self._descriptor >= 0:
            os.close(self._descriptor)
            return
        import torch

        torch.cuda.ipc_collect()
