"""How a reference test writes its inputs down: one readable line for each, in calls of the `draw` of its conftest.

The lines make what the input rules make, as text: `kv_indptr = draw.offsets(num_kv_indices, len_indptr - 1)`.
Const axes stand in them as numbers, var axes by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fib_tools.model.definition import Definition, DType, TensorSpec
from fib_tools.op_types.registry import find_op_type

__all__ = ["write_input_lines"]

_TOTALS: Mapping[str, tuple[str, ...]] = {
    "total_q": ("total_q", "total_tokens", "num_tokens", "total_seq_len", "nnz_qo"),
    "total_kv": ("num_kv_indices", "total_kv", "num_kv_tokens", "nnz_kv", "total_q"),
}
_OFFSETS: Mapping[str, str] = {
    **dict.fromkeys(("qo_indptr", "q_indptr", "cu_seqlens", "cu_seqlens_q", "indptr"), "total_q"),
    **dict.fromkeys(("kv_indptr", "paged_kv_indptr", "cu_seqlens_k"), "total_kv"),
}
_DECLARED_SCALE = re.compile(r"\bsm_scale = ([0-9][0-9.eE+-]*[0-9])")


def write_input_lines(definition: Definition) -> list[str]:
    """Write the statements that make every input, in calling order."""
    own = find_op_type(definition.op_type)
    codes = dict(own.input_code) if own else {}
    return [f"{name} = {_write(definition, name, spec, codes)}" for name, spec in definition.inputs.items()]


def _write(definition: Definition, name: str, spec: TensorSpec, codes: Mapping[str, str]) -> str:
    words = _Words(definition, spec)
    if name in codes:
        return codes[name].format_map(words)
    if name in _OFFSETS:
        return _write_offsets(definition, name, words)
    if name in {"sm_scale", "softmax_scale"}:
        return _write_scale(definition, spec)
    return _by_dtype(spec, words)


class _Words(dict[str, str]):
    """What the braces of a line stand for: axes, the shape and the type of the input."""

    def __init__(self, definition: Definition, spec: TensorSpec) -> None:
        consts = definition.const_axes
        axes = {name: str(consts.get(name, name)) for name in definition.axes}
        shape = ", ".join(axes[axis] for axis in spec.shape or ())
        queries = ", queries=qo_indptr" if "qo_indptr" in definition.inputs else ""
        closed = f"({shape},)" if len(spec.shape or ()) == 1 else f"({shape})"
        super().__init__(axes, shape=closed, dtype=f"torch.{_torch_name(spec.dtype)}", queries=queries)

    def __missing__(self, key: str) -> str:
        return "1"


def _torch_name(dtype: DType) -> str:
    return "float4_e2m1fn_x2" if dtype is DType.FLOAT4_E2M1 else dtype.value


def _write_offsets(definition: Definition, name: str, words: _Words) -> str:
    spec = definition.inputs[name]
    length = words.get((spec.shape or ["2"])[0], "2")
    parts = f"{length} - 1" if not length.isdecimal() else str(int(length) - 1)
    total = next((axis for axis in _TOTALS[_OFFSETS[name]] if axis in definition.axes), None)
    if total is None:
        return f"draw.offsets(4 * ({parts}), {parts}, {words['dtype']})"
    least = ""
    if _OFFSETS[name] == "total_kv" and "qo_indptr" in definition.inputs and name != "qo_indptr":
        least = f", least=qo_indptr, per={words['page_size'] if total == 'num_kv_indices' else 1}"
    return f"draw.offsets({words[total]}, {parts}, {words['dtype']}{least})"


def _write_scale(definition: Definition, spec: TensorSpec) -> str:
    declared = _DECLARED_SCALE.search(spec.description or "")
    if declared:
        return declared[1]
    width = next((definition.const_axes[name] for name in _WIDTHS if name in definition.const_axes), 1)
    return f"{width}**-0.5"


_WIDTHS = ("head_dim", "head_dim_qk", "head_dim_ckv")


def _by_dtype(spec: TensorSpec, words: _Words) -> str:
    kind = spec.dtype.value
    if spec.shape is None:
        return {"b": "False", "i": "1", "f": "1.0"}["f" if spec.dtype is DType.BFLOAT16 else kind[0]]
    if spec.dtype is DType.BOOL or kind.startswith("int"):
        return f"draw.integers({words['shape']}, 0, 2, {words['dtype']})"
    return f"draw.normal({words['shape']}, {words['dtype']})"
