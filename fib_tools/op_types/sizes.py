"""Lengths of var axes for reference tests: small ones of a trial run, medium and large ones of serving."""

from __future__ import annotations

from collections.abc import Mapping

from fib_tools.model.definition import Definition
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.registry import find_op_type

__all__ = ["SIZES", "choose_test_axes"]

SIZES = ("small", "medium", "large")

_GENERAL: Mapping[str, tuple[int, int]] = {
    "batch_size": (16, 128),
    "num_seqs": (8, 16),
    "seq_len": (128, 1024),
    "num_tokens": (128, 2048),
    "nnz": (128, 2048),
    "nnz_kv": (64, 512),
    "M": (128, 2048),
    "total_q": (96, 768),
    "total_kv": (1024, 8192),
    "len_indptr": (9, 17),
}
"""Medium and large, by the axis names that Definitions use; other axes keep their small length."""

_KV_TOKENS = (2048, 24576)
"""Tokens of all sequences in a paged cache."""
_PAGES_EACH = 2
"""Pages more for each sequence, which may leave its last one nearly empty."""
_SPARE_PAGES = 5
"""Pages of the cache that no sequence has."""


def choose_test_axes(definition: Definition, size: str) -> dict[str, int]:
    """Give every var axis a length for `small`, `medium` or `large`.

    Raises:
        FormatError: when the constraints cannot all hold.
    """
    index = SIZES.index(size) - 1
    wanted: dict[str, int] = {}
    if index >= 0:
        own = find_op_type(definition.op_type)
        table = {**_GENERAL, **(own.test_sizes if own else {})}
        wanted = {axis: table[axis][index] for axis in definition.var_axes if axis in table}
    axes = choose_axes(definition, wanted)
    if index >= 0 and "num_kv_indices" in definition.var_axes:
        axes = choose_axes(definition, {**wanted, **_page_axes(axes, _KV_TOKENS[index])})
    return {name: axes[name] for name in definition.var_axes}


def _page_axes(axes: Mapping[str, int], tokens: int) -> dict[str, int]:
    sequences = axes.get("batch_size", axes.get("len_indptr", 2) - 1)
    pages = tokens // axes.get("page_size", 1) + _PAGES_EACH * sequences
    return {"num_kv_indices": pages, "num_pages": pages + _SPARE_PAGES}
