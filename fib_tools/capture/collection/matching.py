"""Which Definition a call is of, and what of the call its Workload says.

The kernel type follows from the API, its parameters from what the call was told and from the lengths of its tensors:
every const axis is held against the Definition, every var axis must have one length wherever it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fib_tools.capture.collection.observation import Observation, Seen
from fib_tools.errors import FormatError
from fib_tools.model.definition import Definition, DType, TensorSpec
from fib_tools.model.expressions import evaluate
from fib_tools.op_types.attention import find_declared_scale
from fib_tools.op_types.axes import is_over_axes
from fib_tools.op_types.base import KernelType
from fib_tools.op_types.inputs import find_values
from fib_tools.op_types.registry import get_kernel_type, list_kernel_types

if TYPE_CHECKING:
    import torch

__all__ = ["Match", "Target", "find_match", "find_targets", "is_known_api"]

_CLOSE = 1e-6
_PACKED = frozenset({"uint8", "int8", "float4_e2m1fn_x2"})
"""Element types that stand for one another where numbers are packed."""

_OTHER_APIS: Mapping[str, tuple[str, ...]] = {
    "gemm_fp8_block": ("flashinfer.gemm.fp8_blockscale_gemm_sm90",),
    "moe_bf16": ("flashinfer.fused_moe.cutlass_fused_moe",),
}
"""By kernel type: functions that compute it besides its own, and are told otherwise."""

_TOTALS: Mapping[str, tuple[str, ...]] = {"qo_indptr": ("total_q",), "kv_indptr": ("num_kv_indices", "total_kv")}
"""Axes that an indptr ends at."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A Definition of the dataset that Workloads are collected for."""

    definition: Definition
    kernel: str
    """The id of its kernel type."""
    parameters: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A call as a Workload of a Definition."""

    target: Target
    axes: Mapping[str, int]
    """Of the var axes, in the Definition's order."""
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Inputs that are kept as they are."""
    scalars: Mapping[str, float | int | bool] = field(default_factory=dict)
    values: Mapping[str, Seen] = field(default_factory=dict)
    """Inputs that are drawn anew for every run."""
    notes: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    """What only the Definition says."""
    experts: torch.Tensor | None = None
    """Of each token, where it is sent to experts."""
    is_made_up: bool = False
    """Something of it is not what the engine did."""


class _MisfitError(Exception):
    """Why a call is none of a Definition."""

    depth = 0
    """How much of the call did fit before."""


class _ValuesError(_MisfitError):
    """Every length fits, and what is kept does not."""

    depth = 2


class _LengthsError(_MisfitError):
    """The parameters fit, and a length does not."""

    depth = 1


def is_known_api(module: str, function: str) -> bool:
    """Tell whether a kernel type of ours computes what this function computes."""
    return any(_computes(kernel, module, function) for kernel in list_kernel_types())


def find_targets(targets: Sequence[Target], module: str, function: str) -> list[Target]:
    """Find the Definitions whose kernel type this API computes."""
    return [item for item in targets if _computes(get_kernel_type(item.kernel), module, function)]


def _computes(kernel: KernelType[Any], module: str, function: str) -> bool:
    apis = (kernel.fi_api, *_OTHER_APIS.get(kernel.id, ()))
    return any(_is_of_api(api, module, function) for api in apis)


def _is_of_api(fi_api: str | None, module: str, function: str) -> bool:
    """Compare the function, and the package it is in: where in it FlashInfer keeps a function differs by version."""
    if fi_api is None or not module.startswith("flashinfer."):
        return False
    return fi_api.endswith(f".{function}") and fi_api.split(".")[1] == module.split(".")[1]


def find_match(observation: Observation, targets: Sequence[Target]) -> Match:
    """Find the one Definition that a call is of.

    Raises:
        FormatError: there is none, or several; the message says why.
    """
    found: list[Match] = []
    reasons: list[tuple[int, str]] = []
    for target in targets:
        try:
            found.append(_fit(observation, target))
        except _MisfitError as misfit:
            reasons.append((misfit.depth, f"{target.definition.name}: {misfit}"))
    chosen = [match for match in found if not match.taken] or found
    if len(chosen) == 1:
        return chosen[0]
    where = observation.call.folder.name
    if chosen:
        names = ", ".join(match.target.definition.name for match in chosen)
        raise FormatError(f"the dump does not tell which it is of: {names}", where=where)
    if not reasons:
        raise FormatError("no Definition of this API is in the selection", where=where)
    _, nearest = max(reasons, key=lambda item: item[0])
    others = f" (and {len(reasons) - 1} others do not fit)" if len(reasons) > 1 else ""
    raise FormatError(f"{nearest}{others}", where=where)


def _fit(observation: Observation, target: Target) -> Match:
    taken = _check_parameters(observation, target)
    definition = target.definition
    seen = {
        name: _find_tensor(name, spec, observation)
        for name, spec in definition.inputs.items()
        if spec.shape is not None
    }
    axes = _bind_axes(definition, seen)
    free = find_values(definition) - {name for name, item in seen.items() if item.is_kept}
    for name, item in seen.items():
        if name not in free and item.values is None:
            raise _ValuesError(item.problem or f"the values of {name} are not in the dump")
    return Match(
        target=target,
        axes={name: axes[name] for name in definition.var_axes},
        tensors={name: _keep(name, item, definition, axes) for name, item in seen.items() if name not in free},
        scalars={
            name: _find_scalar(name, spec, observation)
            for name, spec in definition.inputs.items()
            if spec.shape is None
        },
        values={name: item for name, item in seen.items() if name in free},
        notes=(*observation.notes, *taken),
        taken=taken,
        experts=observation.experts,
        is_made_up=observation.is_made_up,
    )


def _check_parameters(observation: Observation, target: Target) -> tuple[str, ...]:
    """Hold the parameters of a Definition's kernel against the call; name those that the dump cannot show."""
    kernel = get_kernel_type(target.kernel)
    call = kernel.find_template_call(target.parameters)
    told = {**call.arguments, **call.selector} if call is not None else {}
    for name, wanted in told.items():
        if isinstance(wanted, (bool, int, float, str)) and name not in kernel.parameters.model_fields:
            _check_same(name, wanted, observation)
    taken: list[str] = []
    for name, info in kernel.parameters.model_fields.items():
        wanted = target.parameters.get(name)
        if name in target.definition.inputs:
            continue  # a softmax scale, say: a call may have another
        if name in observation.facts:
            _check_same(name, wanted, observation)
        elif name in target.definition.axes or name.endswith("dtype") or name in kernel.parameters.silent:
            continue  # lengths and element types are held against the tensors
        elif info.is_required() and call is None and name not in observation.hidden:
            raise _MisfitError(f"nothing shows {name}, which is {wanted!r} in the Definition")
        elif not info.is_required() and wanted != info.default:
            if name not in observation.hidden:
                raise _MisfitError(f"{name} is {wanted!r} in the Definition, and the call does not say so")
            taken.append(f"{name} = {wanted!r} is the Definition's: no dump shows it")
    return (*taken, *_compare_scale(observation, target.definition))


def _compare_scale(observation: Observation, definition: Definition) -> list[str]:
    """Say when a call has another softmax scale than the Definition's model: an input may, another Definition fits better."""
    spec, given = definition.inputs.get("sm_scale"), observation.scalars.get("sm_scale")
    declared = find_declared_scale(spec.description) if spec is not None else None
    if declared is None or given is None or math.isclose(declared, given, rel_tol=_CLOSE):
        return []
    return [f"sm_scale is {given:g} in calls, and {declared:g} of the Definition's model"]


def _check_same(name: str, wanted: Any, observation: Observation) -> None:
    given = observation.facts.get(name, wanted)
    if isinstance(wanted, float) and isinstance(given, (int, float)):
        is_same = math.isclose(wanted, given, rel_tol=_CLOSE)
    else:
        is_same = wanted is None or bool(wanted == given)  # what says nothing says what the tensors do
    if not is_same:
        raise _MisfitError(f"{name} is {given!r}, and {wanted!r} in the Definition")


def _find_tensor(name: str, spec: TensorSpec, observation: Observation) -> Seen:
    seen = observation.tensors.get(name)
    if seen is None:
        raise _LengthsError(f"the call gives no tensor {name}")
    declared = spec.dtype.value
    is_packed = spec.dtype in {DType.INT8, DType.FLOAT4_E2M1} and seen.dtype in _PACKED
    if seen.dtype != declared and not is_packed:
        raise _LengthsError(f"{name} is {seen.dtype}, and {declared} in the Definition")
    return seen


def _bind_axes(definition: Definition, seen: Mapping[str, Seen]) -> dict[str, int]:
    axes = dict(definition.const_axes)
    for name, item in seen.items():
        declared = definition.inputs[name].shape or []
        shape = item.shape
        if len(shape) > len(declared) >= 2:  # SGLang's norms over heads: rows of the last dimension
            shape = (math.prod(shape[: len(shape) - len(declared) + 1]), *shape[len(shape) - len(declared) + 1 :])
        if len(shape) != len(declared):
            raise _LengthsError(f"{name} has the shape {item.shape}, and {declared} in the Definition")
        for axis, length in zip(declared, shape, strict=True):
            if axes.setdefault(axis, length) != length:
                raise _LengthsError(f"{name} has {axis} = {length}, and it is {axes[axis]}")
    _settle_axes(definition, axes)
    return axes


def _settle_axes(definition: Definition, axes: dict[str, int]) -> None:
    unknown = [name for name in definition.var_axes if name not in axes]
    if unknown:
        raise _LengthsError(f"no tensor tells the axis {unknown[0]}")
    empty = [name for name in definition.var_axes if axes[name] <= 0]
    if empty:
        raise _LengthsError(f"the axis {empty[0]} is {axes[empty[0]]}: there is nothing to compute")
    for text in definition.constraints:
        if is_over_axes(text, definition) and not evaluate(text, axes, where=definition.name):
            raise _LengthsError(f"constraint {text!r} does not hold")


def _keep(name: str, seen: Seen, definition: Definition, axes: Mapping[str, int]) -> torch.Tensor:
    """Return the values of structure, where they may stand in a Workload."""
    if seen.values is None:
        raise _ValuesError(f"the values of {name} are not in the dump")
    values = seen.values.reshape([axes[axis] for axis in definition.inputs[name].shape or ()])
    for total in _TOTALS.get(name, ()):
        if total in axes and int(values[-1]) != axes[total]:
            raise _ValuesError(f"{name} ends at {int(values[-1])}, and {total} is {axes[total]}")
    if name == "kv_indices" and "num_pages" in axes and values.numel():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= axes["num_pages"]:
            raise _ValuesError(f"kv_indices names the pages {low} to {high} of {axes['num_pages']}")
    return values


def _find_scalar(name: str, spec: TensorSpec, observation: Observation) -> float | int | bool:
    """Find a scalar: as the caller gave it, or as the Definition states it of its model."""
    declared = find_declared_scale(spec.description) if name == "sm_scale" else None
    value = observation.scalars.get(name, declared)
    if value is None:
        raise _ValuesError(f"nothing shows the value of {name}")
    is_whole = isinstance(value, bool) if spec.dtype is DType.BOOL else type(value) is int
    if not math.isfinite(value) or (spec.dtype.value.startswith(("int", "bool")) and not is_whole):
        raise _ValuesError(f"{name} is {value!r}, and {spec.dtype.value} in the Definition")
    return value
