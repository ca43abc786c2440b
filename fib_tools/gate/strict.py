"""The strict shape check: FlashInfer's templates believe any tensor, so a call that does not fit gives a wrong kernel.

Seen in the field: a 3-D QK-norm recorded as `rmsnorm_h32`, HND caches as `kv16_ps8`, a 3-D KV pool as `kv128_ps8`, a
3-D MLA cache as `ps576`. Each breaks one of the rules below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fib_tools.errors import FormatError
from fib_tools.gate.templates import TemplateResult
from fib_tools.model.expressions import evaluate, find_names, parse_expression
from fib_tools.op_types.base import TemplateCall

__all__ = ["find_axis_faults", "find_shape_faults"]

_BUFFERS = frozenset(
    {"out", "lse", "workspace_buffer", "float_workspace_buffer", "int_workspace_buffer", "residual_out"}
)
"""Tensor arguments that a template may leave unread: they carry no shape of the kernel."""

SPLIT_WIDTHS: Mapping[int, int] = {192: 128}
"""Query widths that every public model pairs with a narrower value: DeepSeek's MLA and MiMo."""

_PLAN_TIME = frozenset({"qo_indptr", "kv_indptr", "kv_indices", "paged_kv_indptr", "paged_kv_indices"})
_LEAST_NORM = 64
"""A norm over fewer elements does not occur; such a hidden_size is a number of heads."""


def find_shape_faults(
    call: TemplateCall, result: TemplateResult, *, expected: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """Compare every tensor of a call with the axes of the dump made from it; empty when all is consistent.

    `expected` are the const axes of the canonical Definition: the only way to notice tensors that are consistent among
    themselves and mean something else, such as caches in HND order.
    """
    if result.raw is None:
        return (f"no dump: {result.reason}",)
    return tuple(dict.fromkeys(_faults(call, result, expected or {})))


def _faults(call: TemplateCall, result: TemplateResult, expected: Mapping[str, int]) -> Iterator[str]:
    raw: Mapping[str, Any] = result.raw or {}
    bound: dict[str, int] = {}
    for name, shape in result.bindings.items():
        yield from _bind(name, raw["inputs"][name], shape, bound)
    strays = [name for name in result.strays if name not in _BUFFERS]
    if strays:
        yield f"no input reads the tensor {', '.join(strays)} of the call"
    yield from _const_faults(raw, bound, expected)
    yield from _relation_faults(raw, {**_const_values(raw), **bound})
    yield from _layout_faults(call, raw)
    yield from find_axis_faults(raw)


def _bind(name: str, spec: Mapping[str, Any], shape: tuple[int, ...] | None, bound: dict[str, int]) -> Iterator[str]:
    axes = spec["shape"]
    if shape is None:
        if not spec.get("optional"):
            yield f"{name}: the call has no tensor where the template looks for it"
        return
    if len(shape) != len(axes):
        yield f"{name}: the call's tensor has {len(shape)} dimensions, the template names {len(axes)} ({', '.join(axes)})"
        return
    for axis, length in zip(axes, shape, strict=True):
        if axis.isdecimal() and int(axis) != length:
            yield f"{name}: a dimension of 1 is {length}" if axis == "1" else f"{name}: {axis} is {length}"
        elif bound.setdefault(axis, length) != length:
            yield f"{name}: {axis} is {length}, elsewhere {bound[axis]}"


def _const_values(raw: Mapping[str, Any]) -> dict[str, int]:
    values = {name: axis.get("value") for name, axis in raw["axes"].items()}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def _const_faults(raw: Mapping[str, Any], bound: Mapping[str, int], expected: Mapping[str, int]) -> Iterator[str]:
    for name, axis in raw["axes"].items():
        value = axis.get("value")
        if axis.get("type") == "const" and value is None:
            yield f"const axis {name} has no value"
        elif value is not None and bound.get(name, value) != value:
            yield f"const axis {name} is {value}, the call's tensors have {bound[name]}"
        if value is not None and expected.get(name, value) != value:
            yield f"const axis {name} is {value}, the kernel's is {expected[name]}"


def _relation_faults(raw: Mapping[str, Any], lengths: Mapping[str, int]) -> Iterator[str]:
    """Check what constraints say of axes, and what derived axes' names do, such as `K_div_128`."""
    for text in raw.get("constraints") or ():
        try:
            parse_expression(text)
            if find_names(text) <= lengths.keys() and not evaluate(text, lengths):
                yield f"constraint {text!r} does not hold"
        except FormatError:
            continue
    for name, length in lengths.items():
        base, divided, by = name.rpartition("_div_")
        divisor = int(by) if by.isdecimal() else lengths.get(by)
        if divided and base in lengths and divisor and -(-lengths[base] // divisor) != length:
            yield f"{name} is {length}, but {base} is {lengths[base]}"


def _layout_faults(call: TemplateCall, raw: Mapping[str, Any]) -> Iterator[str]:
    """The paged templates name caches in NHD order, whatever the call says."""
    if call.arguments.get("kv_layout") != "HND":
        return
    for name, spec in raw["inputs"].items():
        axes = spec["shape"] or []
        if "page_size" in axes and "num_kv_heads" in axes and axes.index("page_size") < axes.index("num_kv_heads"):
            yield f"{name}: the call's caches are HND, the template names them NHD"


def find_axis_faults(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Judge a dump's const axes alone, without the call: lengths that no kernel has.

    What is found here was dumped from tensors of another rank or layout than the template takes.
    """
    values = _const_values(raw)
    names = (str(raw.get("op_type", "")), str(raw.get("name", "")))
    return tuple(_axis_faults(values, *names))


def _axis_faults(values: Mapping[str, int], op_type: str, name: str) -> Iterator[str]:
    q_heads, kv_heads = values.get("num_qo_heads"), values.get("num_kv_heads")
    page_size, head_dim = values.get("page_size"), values.get("head_dim")
    is_pool = kv_heads is not None and kv_heads == head_dim and page_size is not None
    if is_pool:
        yield f"num_kv_heads = head_dim = {head_dim}: a 3-D pool [tokens, heads, dim] read as pages"
    elif q_heads and kv_heads and q_heads % kv_heads:
        yield f"num_qo_heads = {q_heads} is no multiple of num_kv_heads = {kv_heads}"
    if page_size is not None and (page_size <= 0 or page_size & (page_size - 1)):
        yield f"page_size = {page_size} is no power of two: another dimension was read as the page"
    if name.startswith("append_paged_kv_cache") and page_size == 2:
        yield "page_size = 2: the pair of K and V of a 5-D cache read as the page"
    if "ragged" in name and head_dim is not None and head_dim in SPLIT_WIDTHS and "head_dim_vo" not in values:
        yield f"head_dim = {head_dim}: V and the output are {SPLIT_WIDTHS[head_dim]} wide there"
    hidden = values.get("hidden_size")
    if op_type == "rmsnorm" and hidden is not None and hidden < _LEAST_NORM:
        yield f"hidden_size = {hidden}: a number of heads read as the width of the norm"
    yield from _moe_faults(values)


def _moe_faults(values: Mapping[str, int]) -> Iterator[str]:
    experts, local, top_k = values.get("num_experts"), values.get("num_local_experts"), values.get("top_k")
    if experts and local and local > experts:
        yield f"num_local_experts = {local} is over num_experts = {experts}"
    if experts and top_k and top_k > experts:
        yield f"top_k = {top_k} is over num_experts = {experts}"
