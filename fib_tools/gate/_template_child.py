"""What runs in the sandbox: FlashInfer is imported here, and its trace templates are called on meta tensors."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

from fib_tools.errors import FormatError
from fib_tools.gate.derived import find_meaning
from fib_tools.model.expressions import evaluate

__all__ = ["enumerate_all", "instantiate"]


def instantiate(payload: dict[str, Any]) -> dict[str, Any]:
    """Instantiate the template of each call; a call that has none says why."""
    _keep_files_in_scratch()
    return {"results": [_instantiate_one(call) for call in payload["calls"]]}


def enumerate_all(payload: dict[str, Any]) -> dict[str, Any]:
    """Instantiate every template that the given modules register, with made-up arguments."""
    _keep_files_in_scratch()
    failed = {}
    for name in payload["modules"]:
        reason = _import(name)
        if reason:
            failed[name] = reason
    results = []
    for fi_api, template in _registered():
        special = payload["made_up"].get(template.name_prefix or template.op_type, {})
        sizes = {**payload["sizes"], **special.get("sizes", {})}
        arguments = _arguments_of_init(template, sizes)
        arguments = arguments or _arguments_of_axes(template, sizes, special.get("dtypes", {}))
        results.append(_describe(fi_api, template, arguments))
    return {"results": results, "failed": failed}


def _keep_files_in_scratch() -> None:
    """FlashInfer writes a log and a cache beside its first import; a job's scratch folder is its home."""
    home = os.environ.get("HOME", ".")
    os.environ["FLASHINFER_WORKSPACE_BASE"] = home
    os.environ["FLASHINFER_TRACE_DUMP"] = "0"


def _import(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError, OSError, AttributeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _registered() -> Iterator[tuple[str, Any]]:
    from flashinfer import api_logging

    name_of = getattr(api_logging, "_trace_fi_api_for")  # noqa: B009  # the registry has no public name
    for original, template, _ in getattr(api_logging, "_TRACE_REGISTRY"):  # noqa: B009  # the same
        yield name_of(original), template


def _dispatchers() -> Iterator[tuple[str, Any]]:
    from flashinfer import api_logging

    name_of = getattr(api_logging, "_trace_fi_api_for")  # noqa: B009  # the registry has no public name
    for original, dispatch in getattr(api_logging, "_TRACE_DISPATCHERS").items():  # noqa: B009  # the same
        yield name_of(original), dispatch


def _instantiate_one(call: dict[str, Any]) -> dict[str, Any]:
    fi_api = call["fi_api"]
    reason = _import_home(fi_api)
    arguments = {name: _decode(value) for name, value in call["arguments"].items()}
    selector = {name: _decode(value) for name, value in call["selector"].items()}
    template = _find_template(fi_api, {**arguments, **selector})
    if template is None:
        return {"fi_api": fi_api, "reason": reason or f"FlashInfer registers no template for {fi_api}"}
    return _describe(fi_api, template, {**selector, **arguments})


def _import_home(fi_api: str) -> str | None:
    """Import the module that an API lives in: the longest importable front of its dotted name."""
    parts = fi_api.split(".")
    reason = None
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        reason = _import(name)
        if reason is None or not reason.startswith("ModuleNotFoundError") or name not in reason:
            return reason
    return reason


def _find_template(fi_api: str, arguments: Mapping[str, Any]) -> Any:
    for name, dispatch in _dispatchers():
        if name == fi_api:
            return dispatch(save_dir=None, name=None, **arguments)
    return next((template for name, template in _registered() if name == fi_api), None)


def _decode(value: Any) -> Any:
    import torch

    match value:
        case {"tensor": shape, "dtype": dtype}:
            return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        case {"tuple": items}:
            return tuple(_decode(item) for item in items)
        case {"torch_dtype": name}:
            return getattr(torch, name)
        case {"value": plain}:
            return plain
    return value


def _describe(fi_api: str, template: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    raw = template.build_fi_trace_fn(fi_api)(**arguments)
    read = set()
    bindings = {}
    for name, descriptor in template.inputs.items():
        parameter = descriptor.param or name
        read.add(parameter)
        if hasattr(descriptor, "dim_names"):
            bindings[name] = _shape_of(arguments.get(parameter), descriptor.tuple_idx)
    strays = [name for name, value in arguments.items() if name not in read and _tensors_of(value)]
    values = {name: _plain(value) for name, value in arguments.items() if not _tensors_of(value)}
    return {
        "fi_api": fi_api,
        "fi_name": raw["name"],
        "raw": raw,
        "bindings": bindings,
        "strays": strays,
        "values": {name: value for name, value in values.items() if value is not None},
        "parameters": {name: getattr(item, "param", None) or name for name, item in template.inputs.items()},
        "reason": None,
    }


def _shape_of(value: Any, index: int | None) -> list[int] | None:
    import torch

    if index is not None:
        value = value[index] if isinstance(value, (tuple, list)) and len(value) > index else None
    return list(value.shape) if isinstance(value, torch.Tensor) else None


def _tensors_of(value: Any) -> bool:
    import torch

    if isinstance(value, (tuple, list)):
        return any(isinstance(item, torch.Tensor) for item in value)
    return isinstance(value, torch.Tensor)


def _plain(value: Any) -> Any:
    import torch

    if isinstance(value, torch.dtype):
        return {"torch_dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "value", None) if isinstance(getattr(value, "value", None), (int, str)) else None


_SMALL = frozenset({"hidden_size", "intermediate_size", "num_experts", "num_local_experts", "vocab_size", "top_k", "K"})
"""Const axes that may be small in a made-up call; others, such as head_dim, take part in an init's own arithmetic."""


def _arguments_of_init(template: Any, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """Call the template's own `init` with small lengths; a plan and a run become one call, as fi_trace takes it."""
    if template.init is None:
        return None
    lengths = {name: 4 for name, marker in template.axes.items() if type(marker).__name__ == "Var"}
    parameters = inspect.signature(template.init).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    names = template.axes if takes_any else parameters
    small = {name: sizes[name] for name in names if name in sizes and name in _SMALL}
    for chosen, device in ((small, "meta"), ({}, "meta"), (small, "cpu"), ({}, "cpu")):
        try:
            made = template.init(**{**lengths, **chosen}, device=device)
        except Exception:  # noqa: BLE001, S112  # an init is arbitrary code, and the next way is tried
            continue
        if isinstance(made, dict) and set(made) == {"plan", "run"}:
            made = {**made["plan"], **made["run"]}
        if isinstance(made, dict):
            return made
    return None


def _arguments_of_axes(template: Any, sizes: Mapping[str, Any], dtypes: Mapping[str, str]) -> dict[str, Any]:
    import torch

    lengths = _choose_lengths(template, sizes)
    arguments: dict[str, Any] = {}
    pieces: dict[str, dict[int, Any]] = {}
    for name, descriptor in template.inputs.items():
        parameter = descriptor.param or name
        if not hasattr(descriptor, "dim_names"):
            if name in template.axes:
                arguments[parameter] = lengths[name]
            continue
        if descriptor.optional and name not in _PASSED:
            continue
        shape = [lengths[axis] for axis in descriptor.dim_names]
        is_mxfp8 = lengths.get("activation_type") == _SWIGLU_STEP and name.endswith("_scale")
        dtype = torch.uint8 if is_mxfp8 else _guess_dtype(name, descriptor)
        dtype = getattr(torch, dtypes[name]) if name in dtypes else dtype
        made = torch.empty(shape, dtype=dtype, device="meta")
        if descriptor.tuple_idx is None:
            arguments[parameter] = made
        else:
            pieces.setdefault(parameter, {})[descriptor.tuple_idx] = made
    for parameter, items in pieces.items():
        arguments[parameter] = tuple(items[index] for index in sorted(items))
    consts = {name: lengths[name] for name, marker in template.axes.items() if type(marker).__name__ == "Const"}
    if lengths.get("activation_type") == _SWIGLU_STEP and "fp8_quantization_type" in template.inputs:
        arguments["fp8_quantization_type"] = _MXFP8
    return {**consts, **arguments}


_PASSED = frozenset({"hidden_states_scale", "routing_bias", "x_sf", "fc2_input_scale", "kv_indptr", "kv_indices"})
"""Optional inputs that a real call has."""

_SWIGLU_STEP = 7
_MX_BLOCKS = frozenset({"num_hidden_blocks", "num_intermediate_blocks", "num_gemm1_out_blocks"})
"""Numbers of blocks that are of 128 elsewhere, and of 32 with MXFP8."""
_MXFP8 = 2
"""SwiGLUStep exists for MXFP8 block scales only."""


def _choose_lengths(template: Any, sizes: Mapping[str, Any]) -> dict[str, int]:
    """Give every axis a length in the relations that constraints and names promise."""
    used = [axis for item in template.inputs.values() for axis in getattr(item, "dim_names", ())]
    names = dict.fromkeys([*template.axes, *used])
    lengths = {axis: _length(axis, template.axes.get(axis), sizes) for axis in names}
    fixed = {axis for axis in names if axis in sizes or getattr(template.axes.get(axis), "value", None) is not None}
    rules = [text.partition("==")[::2] for text in template.constraints if text.count("==") == 1]
    rules += [(axis, find_meaning(axis, [name for name in names if name in fixed]) or "") for axis in names]
    for _ in range(3):
        for target, expression in rules:
            axis = target.strip()
            if axis not in lengths or axis in fixed or not expression:
                continue
            try:
                lengths[axis] = evaluate(expression.strip(), lengths)
            except FormatError:
                continue
    if lengths.get("activation_type") == _SWIGLU_STEP and "hidden_states_scale" in template.inputs:
        lengths |= {axis: 4 * length for axis, length in lengths.items() if axis in _MX_BLOCKS}
    return lengths


def _length(axis: str, marker: Any, sizes: Mapping[str, Any]) -> int:
    if axis.isdecimal():
        return int(axis)
    fixed = getattr(marker, "value", None)
    is_var = marker is None or type(marker).__name__ == "Var"
    return int(fixed) if fixed is not None else int(sizes.get(axis, 4 if is_var else 16))


def _guess_dtype(name: str, descriptor: Any) -> Any:
    import torch

    if descriptor.dtype is not None:
        return getattr(torch, descriptor.dtype, torch.bfloat16)
    if any("packed" in axis for axis in descriptor.dim_names):
        return torch.uint8
    if any("fp4" in axis and "blocks" in axis for axis in descriptor.dim_names):
        return torch.float8_e4m3fn
    words = set(name.lower().split("_"))
    if words & {
        "indptr",
        "indices",
        "ids",
        "lens",
        "len",
        "tables",
        "table",
        "positions",
        "cu",
        "idx",
        "offsets",
        "seqlens",
    }:
        return torch.int32
    if words & {"scale", "scales", "sf", "alpha", "bias", "logits", "probs"}:
        return torch.float32
    return torch.bfloat16
