"""Shapes that a workload does not have: near its own, so that a kernel written for those alone is found out."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from fib_tools.errors import FormatError
from fib_tools.model.definition import Definition
from fib_tools.op_types.axes import choose_axes

__all__ = ["choose_held_out_axes"]

_TRIES = 8
_SHARES = (0.7, 0.95)
"""Of a length."""
_FEWEST = (1, 5)
"""What a length is raised to, since one row has no smaller neighbour."""
_TILE = 8
"""Lengths that kernels like are multiples of it."""
_OFFSETS = "len_"
"""How the lengths of indptr tensors begin: one more than the sequences."""


def choose_held_out_axes(definition: Definition, axes: Mapping[str, int], seed: int) -> dict[str, int]:
    """Give every var axis another valid length near the workload's, mostly smaller, no multiple of 8 if that may be.

    What was no longer than something else stays so, and pages suffice for the tokens, so that the rules can make page
    tables. Where constraints allow no other lengths, the workload's own come back.
    """
    draw = random.Random(f"{definition.name}:{seed}")  # noqa: S311  # a choice of shapes, no secret
    own = {name: axes[name] for name in definition.var_axes}
    for _ in range(_TRIES):
        shorten = _draw_map(draw)
        wanted = {name: _shorten(name, length, shorten) for name, length in own.items()}
        found = _settle(definition, wanted)
        if found is not None and found != own:
            return found
    return own


def _draw_map(draw: random.Random) -> Callable[[int], int]:
    """Draw a map of lengths that never turns two around."""
    share, least = draw.uniform(*_SHARES), draw.randrange(*_FEWEST)

    def shorten(length: int) -> int:
        shorter = int(length * share)
        return max(shorter - (shorter % _TILE == 0), least) if length else 0

    return shorten


def _shorten(name: str, length: int, shorten: Callable[[int], int]) -> int:
    return shorten(length - 1) + 1 if name.startswith(_OFFSETS) and length else shorten(length)


def _settle(definition: Definition, wanted: Mapping[str, int]) -> dict[str, int] | None:
    try:
        axes = choose_axes(definition, wanted)
        settled = choose_axes(definition, {**wanted, **_find_pages(definition, axes)})
    except FormatError:
        return None
    return {name: settled[name] for name in definition.var_axes}


def _find_pages(definition: Definition, axes: Mapping[str, int]) -> dict[str, int]:
    """Find lengths of the page table and the cache that hold all tokens, each sequence's last page nearly empty."""
    if "num_kv_indices" not in definition.var_axes:
        return {}
    sequences = axes.get("batch_size", axes.get("len_indptr", 2) - 1)
    tokens = axes.get("total_q", axes.get("nnz_kv", 0))
    pages = max(axes["num_kv_indices"], tokens // axes.get("page_size", 1) + sequences)
    held = max(axes["num_pages"], pages) if "num_pages" in definition.var_axes else 0
    return {"num_kv_indices": pages, **({"num_pages": held} if held else {})}
