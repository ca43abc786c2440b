"""The two orders in which rows of query and key projections are stored, and the way from one to the other.

Rotary embedding turns pairs of a head's components.
Meta's code, and llama.cpp for the architecture `llama`, pair neighbours: (0, 1), (2, 3), ...
transformers pairs halves: (0, D/2), (1, D/2 + 1), ... with D = head_dim.
The same model therefore has its rows in another order; whoever mixes them up gets plausible nonsense.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["from_neighbours_to_halves"]


def from_neighbours_to_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of a projection, [heads * head_dim, ...], as transformers wants them."""
    rows = weight.shape[0]
    pairs = weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)
