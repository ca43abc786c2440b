"""Element types that the published schema does not know, and inputs that are no tensors or numbers at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.gate.fixes.draft import Draft, RefusedError
from fib_tools.model.definition import DType

__all__ = ["fix_dtypes"]

_KNOWN = frozenset(dtype.value for dtype in DType)

_SAME_WIDTH: Mapping[str, str] = {
    "uint8": "int8",
    "uint16": "int16",
    "uint32": "int32",
    "uint64": "int64",
    "float8_e8m0fnu": "int8",
    "float8_e4m3fnuz": "int8",
}
"""Types outside the schema, and the type of the same width whose bits stand for theirs."""

_ROUNDED: Mapping[str, str] = {"float64": "float32"}

_DTYPE_NAMES = frozenset({"dtype", "out_dtype", "output_dtype", "o_dtype"})

_NOT_NUMBERS = frozenset({"string", "str", "dtype", "object", "enum", "callable"})

_PLAN_TIME: Mapping[str, str] = {
    "qo_indptr": "int32",
    "kv_indptr": "int32",
    "kv_indices": "int32",
    "paged_kv_indptr": "int32",
    "paged_kv_indices": "int32",
    "kv_last_page_len": "int32",
    "paged_kv_last_page_len": "int32",
    "kv_len_arr": "int32",
    "kv_lens": "int32",
}
"""Arrays given to plan() and not to run(): every FlashInfer wrapper takes them as int32."""


def fix_dtypes(draft: Draft) -> None:
    """Give every input and output a dtype of the schema, or leave it out.

    Raises:
        RefusedError: for a required input whose type nothing tells.
    """
    for name in list(draft.inputs):
        _fix_input(draft, name)
    for name in draft.outputs:
        _fix_output(draft, name)


def _fix_input(draft: Draft, name: str) -> None:
    spec = draft.inputs[name]
    dtype = spec["dtype"]
    is_absent = name in (draft.absent or ()) and spec.get("optional") and name not in _PLAN_TIME
    if is_absent and spec["shape"] is not None and not _is_written(draft, name):
        draft.drop_input(name, "the call did not pass it")
    elif spec.get("optional") and draft.absent is None and _brings_an_axis(draft, name):
        draft.drop_input(name, "optional, and its axis is nowhere else")
    elif spec["shape"] is None and name in _DTYPE_NAMES and not isinstance(draft.values.get(name), dict):
        _bake_dtype(draft, name)
    elif dtype in _NOT_NUMBERS:
        _fix_not_a_number(draft, name)
    elif dtype == "unknown":
        _fix_unknown(draft, name)
    elif dtype in _SAME_WIDTH:
        draft.views[name] = dtype
        spec["dtype"] = _SAME_WIDTH[dtype]
        draft.change(f"input {name}: {dtype} as {spec['dtype']}, viewed in run")
    elif dtype in _ROUNDED:
        spec["dtype"] = _ROUNDED[dtype]
        draft.change(f"input {name}: {dtype} as {spec['dtype']}")
    elif dtype not in _KNOWN:
        raise RefusedError(f"input {name} has the dtype {dtype!r}, which the schema cannot express")


def _bake_dtype(draft: Draft, name: str) -> None:
    """A dtype that the dump calls a number is that of the first floating output."""
    outputs = [spec["dtype"] for spec in draft.outputs.values() if spec["dtype"].startswith(("float", "bfloat"))]
    draft.baked[name] = {"torch_dtype": outputs[0] if outputs else "float32"}
    draft.drop_input(name, "it is the dtype of the output")


def _fix_not_a_number(draft: Draft, name: str) -> None:
    spec = draft.inputs[name]
    if name in draft.values:
        value = draft.values[name]
        draft.baked[name] = value
        draft.drop_input(name, f"its {spec['dtype']} value {value!r} is a constant of the kernel")
    elif spec.get("optional"):
        draft.drop_input(name, f"an optional {spec['dtype']} keeps its default")
    else:
        draft.drop_input(name, f"a {spec['dtype']} is no input; the reference's default holds")


def _fix_unknown(draft: Draft, name: str) -> None:
    spec = draft.inputs[name]
    if name in _PLAN_TIME:
        spec["dtype"] = _PLAN_TIME[name]
        draft.change(f"input {name}: {spec['dtype']}, as plan() takes it")
    elif _is_written(draft, name):
        spec["dtype"] = _dtype_of_neighbour(draft, spec, f"input {name}")
        draft.change(f"input {name}: {spec['dtype']}, like the input that shares its axes")
    elif spec.get("optional"):
        draft.drop_input(name, "optional, and absent from the call")
    else:
        raise RefusedError(f"input {name} was not in the call where the template looks for it")


def _brings_an_axis(draft: Draft, name: str) -> bool:
    """Tell whether a tensor is the only one with some var axis, as the optional row indirection of samplers is."""
    if name in _PLAN_TIME or _is_written(draft, name):
        return False
    others = [spec for other, spec in [*draft.inputs.items(), *draft.outputs.items()] if other != name]
    elsewhere = {axis for spec in others for axis in spec["shape"] or ()}
    own = set(draft.inputs[name]["shape"] or ()) - elsewhere
    return any(draft.axes.get(axis, {}).get("type") == "var" for axis in own)


def _is_written(draft: Draft, name: str) -> bool:
    """Tell whether an input is also what the kernel writes, so that it cannot be absent."""
    return any(name in (output, spec.get("param")) for output, spec in draft.outputs.items())


def _fix_output(draft: Draft, name: str) -> None:
    spec = draft.outputs[name]
    dtype = spec["dtype"]
    if dtype in _SAME_WIDTH:
        spec["dtype"] = draft.output_views[name] = _SAME_WIDTH[dtype]
        draft.change(f"output {name}: {dtype} as {spec['dtype']}")
    elif dtype in _ROUNDED:
        spec["dtype"] = draft.output_casts[name] = _ROUNDED[dtype]
        draft.change(f"output {name}: {dtype} rounded to {spec['dtype']}")
    elif dtype not in _KNOWN:
        spec["dtype"] = _dtype_of_neighbour(draft, spec, f"output {name}")
        draft.change(f"output {name}: {dtype} as {spec['dtype']}, like the input that shares its axes")


def _dtype_of_neighbour(draft: Draft, spec: Mapping[str, Any], what: str) -> str:
    """What has no type has that of the first floating input it shares an axis with."""
    axes = set(spec["shape"] or ())
    for other in draft.inputs.values():
        if axes & set(other["shape"] or ()) and other["dtype"].startswith(("float", "bfloat")):
            return str(other["dtype"])
    raise RefusedError(f"nothing tells the dtype of {what}")
