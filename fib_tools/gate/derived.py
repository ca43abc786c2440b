"""What axis names say of their lengths: `K_div_16`, `batch_size_plus_1`, `num_hidden_blocks`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from fib_tools.model.expressions import find_names

__all__ = ["find_meaning"]

_DIVIDED = re.compile(r"(?P<base>\w+?)_div_(?P<by>\w+)")
_TIMES = re.compile(r"(?P<base>\w+?)_mul_(?P<by>\d+)")
_PLUS = re.compile(r"(?P<base>\w+?)_plus_(?P<by>\d+)(?:_\w+)?")

_DERIVED: Mapping[str, tuple[str, ...]] = {
    "one": ("1",),
    "scalar": ("1",),
    "singleton": ("1",),
    "zero": ("0",),
    "len_indptr": ("batch_size + 1",),
    "len_qo_indptr": ("batch_size + 1",),
    "len_cu_seqlens": ("num_seqs + 1",),
    "K_packed": ("K // 2",),
    "hidden_div_2": ("hidden_size // 2",),
    "num_packed_hidden": ("hidden_size // 2",),
    "num_packed_intermediate": ("intermediate_size // 2", "gemm1_out_size // 4"),
    "num_hidden_blocks": ("hidden_size // 128",),
    "num_intermediate_blocks": ("intermediate_size // 128",),
    "num_gemm1_out_blocks": ("gemm1_out_size // 128",),
    "gemm1_out_size": ("2 * intermediate_size",),
    "intermediate_size": ("gemm1_out_size // 2",),
    "num_fp4_hidden_blocks": ("hidden_size // 16",),
    "num_fp4_intermediate_blocks": ("intermediate_size // 16", "gemm1_out_size // 32"),
    "num_mx_hidden_blocks": ("hidden_size // 32",),
    "num_mxint4_hidden_blocks": ("hidden_size // 32",),
    "num_mxint4_intermediate_blocks": ("intermediate_size // 32",),
    "input_width": ("hidden_size // 2",),
    "w1_sf_m_tiles": ("gemm1_out_size // 128",),
    "w1_sf_k_tiles": ("hidden_size // 64",),
    "w2_sf_m_tiles": ("hidden_size // 128",),
    "w2_sf_k_tiles": ("gemm1_out_size // 128",),
    "K_sf_div_4": ("K // block_size // 4",),
    "A_scale_size": (
        "batch_size * ((M + 127) // 128 * 128) * ((K // 32 + 3) // 4 * 4)",
        "(M + 127) // 128 * 128 * ((K // 32 + 3) // 4) * 4",
    ),
    "B_scale_size": (
        "batch_size * ((N + 127) // 128 * 128) * ((K // 32 + 3) // 4 * 4)",
        "(N + 127) // 128 * 128 * ((K // 32 + 3) // 4 * 4)",
    ),
    "packed_head_dim": ("head_dim // 2",),
    "scale_head_dim": ("head_dim // 16",),
    "hidden_size_padded": ("hidden_size",),
    "head_dim_qk": ("kv_lora_rank + qk_rope_head_dim",),
}
"""What FlashInfer's names mean where no constraint says it."""


def find_meaning(axis: str, axes: Collection[str], values: Mapping[str, object] | None = None) -> str | None:
    """Write what an axis's name says as an expression over `axes`; `values` are lengths known by other names."""
    divided = _DIVIDED.fullmatch(axis)
    if divided:
        base = next((name for name in (divided["base"], f"{divided['base']}_size") if name in axes), None)
        by = divided["by"]
        known = (values or {}).get(by)
        if base and isinstance(known, int) and by not in axes:
            return f"{base} // {known}"
        if base and (by.isdecimal() or by in axes):
            return f"{base} // {by}"
    times = _TIMES.fullmatch(axis)
    if times and times["base"] in axes:
        return f"{times['base']} * {times['by']}"
    plus = _PLUS.fullmatch(axis)
    if plus and plus["base"] in axes:
        return f"{plus['base']} + {plus['by']}"
    return next((text for text in _DERIVED.get(axis, ()) if find_names(text) <= set(axes)), None)
