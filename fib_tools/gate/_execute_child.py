"""What runs in the sandbox: a Definition's reference, with inputs made by rule or by the dump's own `init`.

A reference that fails with one kind of inputs is tried with the next: a foreign kernel's index tensors can obey rules
that only its `init` knows.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fib_tools.errors import FibError, FormatError
from fib_tools.evaluate.judge.given import load_given_inputs
from fib_tools.gate.trial import TRIAL_AXES, TRIAL_SCALARS, make_trial_inputs
from fib_tools.model.base import read_lenient, to_document
from fib_tools.model.definition import Definition, TensorSpec
from fib_tools.model.workload import Workload
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.input_request import torch_dtype
from fib_tools.op_types.inputs import plan_inputs
from fib_tools.op_types.registry import find_op_type

__all__ = ["execute"]

_INF_OUTPUTS = ("lse", "logits", "mask", "probs", "score", "max")
"""Words in the names of outputs where an infinity is a value: the log of an empty sum, a masked logit."""


_CHANCE = ("rand", "multinomial", "bernoulli", "exponential", "normal_", "empty", "dropout", "resize_")
"""Words of sources whose result may differ between runs: random numbers and memory that is not written."""

_SLOW_SECONDS = 0.2
"""A reference that takes longer and uses no chance is not run a second time."""

_INIT_BYTES = 512 << 20
"""An init fills its tensors in float32, at real size; beyond this the rules share storage instead."""

_MESSAGE_LENGTH = 300

_REFUSED = " (refused by the isolation: a reference may start no process and open no socket and no file outside)"


class _MismatchError(Exception):
    """Why a reference does not do what its Definition says, and what was seen instead."""

    def __init__(self, reason: str, **seen: Any) -> None:
        self.seen = seen
        super().__init__(reason)


def execute(payload: dict[str, Any]) -> dict[str, Any]:
    """Run the reference of one Definition; the answer says whether it did what the Definition declares."""
    definition = read_lenient(Definition, payload["document"], where=payload["document"].get("name", "definition"))
    budget, seed = payload["byte_budget"], payload["seed"]
    start = time.perf_counter()
    reasons: list[str] = []
    seen: dict[str, Any] = {}
    given = payload.get("workload")
    for way in _ways(definition) if given is None else [partial(_by_workload, given)]:
        try:
            run = _load(definition)
            axes, inputs = way(definition, seed, budget)
            resolved = _check(definition, run, axes, inputs)
        except _MismatchError as failure:
            reasons.append(str(failure))
            seen = seen or failure.seen
            continue
        return {
            "executed": True,
            "reason": None,
            "seconds": time.perf_counter() - start,
            "axes": resolved,
            "shared_storage": any(_is_shared(value) for value in inputs.values()),
            "inputs_from": getattr(way, "__name__", "workload").removeprefix("_by_"),
        }
    return {"executed": False, "reason": "; then ".join(dict.fromkeys(reasons)), "seen": seen}


_Way = Callable[[Definition, int, int], "tuple[dict[str, int], dict[str, Any]]"]


def _describe(error: Exception) -> str:
    """Give the first line of its message, as C++ code appends a stack trace, and name a refusal of the sandbox."""
    message = str(error).strip().partition("\n")[0][:_MESSAGE_LENGTH]
    refused = isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError)
    return f"{type(error).__name__}: {message}{_REFUSED if refused else ''}"


def _ways(definition: Definition) -> list[_Way]:
    """Rules come first where this project knows the op_type, the dump's own `init` where it does not."""
    has_init = isinstance((definition.model_extra or {}).get("init"), str)
    if not has_init:
        return [_by_rules]
    return [_by_rules, _by_init] if find_op_type(definition.op_type) else [_by_init, _by_rules]


def _by_rules(definition: Definition, seed: int, budget: int) -> tuple[dict[str, int], dict[str, Any]]:
    try:
        axes = choose_axes(definition, _sizes(definition))
        return axes, make_trial_inputs(definition, axes, seed=seed, byte_budget=budget)
    except (FibError, RuntimeError, ValueError, KeyError) as error:
        raise _MismatchError(f"no inputs by rule: {_describe(error)}") from error


def _by_workload(
    given: dict[str, Any], definition: Definition, seed: int, budget: int
) -> tuple[dict[str, int], dict[str, Any]]:
    """Take what a Workload gives as it is, from a dataset of which the sandbox shows the blobs, and draw the rest."""
    workload = read_lenient(Workload, given["document"], where=definition.name)
    axes = {**workload.axes, **definition.const_axes}
    try:
        fixed = load_given_inputs(to_document(workload.inputs), device="cpu", root=Path(given["root"]))
        plan = plan_inputs(definition, axes, seed=seed, device="cpu", fixed=fixed, byte_budget=budget)
        return axes, plan.make(seed)
    except (FibError, RuntimeError, ValueError, KeyError, OSError) as error:
        raise _MismatchError(f"no inputs from the workload: {_describe(error)}") from error


def _sizes(definition: Definition) -> dict[str, int]:
    """Lengths by name for foreign Definitions; an op_type of ours has its own."""
    op_type = find_op_type(definition.op_type)
    own = op_type.axis_sizes if op_type else {}
    return {name: length for name, length in TRIAL_AXES.items() if name in definition.axes and name not in own}


def _by_init(definition: Definition, seed: int, budget: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Call the dump's `init` with the Definition's const lengths, and small ones for the rest; it shares no storage."""
    del budget
    import torch

    try:
        axes = choose_axes(definition, _sizes(definition))
    except FormatError as error:
        raise _MismatchError(str(error)) from error
    if _bytes_of(definition, axes) > _INIT_BYTES:
        raise _MismatchError(f"its init would fill more than {_INIT_BYTES >> 20} MiB")
    namespace: dict[str, Any] = {"__name__": "init"}
    try:
        exec(compile((definition.model_extra or {})["init"], "init", "exec"), namespace)  # noqa: S102  # confined child
        function = [item for item in namespace.values() if inspect.isfunction(item) and "device" in _parameters(item)][
            -1
        ]
        torch.manual_seed(seed)
        made = function(**_lengths_for(function, axes), device="cpu")
        return axes, _match(definition, made)
    except _MismatchError:
        raise
    except Exception as error:
        raise _MismatchError(f"its init raised {_describe(error)}") from error


def _lengths_for(function: Callable[..., Any], axes: Mapping[str, int]) -> dict[str, int]:
    """The axes that an `init` takes; those it requires and the Definition has not (derived ones) get a small length."""
    parameters = _parameters(function)
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY and name != "device"
    ]
    return {**dict.fromkeys(required, 4), **{name: axes[name] for name in parameters if name in axes}}


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _match(definition: Definition, made: Any) -> dict[str, Any]:
    """Find each input among what `init` gave: by its name, or by the API parameter it stands for."""
    if not isinstance(made, dict):
        raise _MismatchError("its init gives no dict")
    if set(made) == {"plan", "run"}:
        made = {**made["plan"], **made["run"]}
    inputs: dict[str, Any] = {}
    for name, spec in definition.inputs.items():
        parameter = (spec.model_extra or {}).get("param", name)
        value = made.get(name, made.get(parameter))
        if isinstance(value, (tuple, list)) and value and not isinstance(value[0], int):
            value = value[sum(1 for other in inputs if _parameter(definition, other) == parameter) % len(value)]
        if value is None and spec.shape is None:
            value = _plain_scalar(spec, name)
        inputs[name] = _as_declared(value, spec)
    return inputs


def _parameter(definition: Definition, name: str) -> str:
    return str((definition.inputs[name].model_extra or {}).get("param", name))


def _plain_scalar(spec: TensorSpec, name: str) -> Any:
    return TRIAL_SCALARS.get(name, {"b": False, "i": 1, "f": 1.0}[spec.dtype.value[0]])


def _as_declared(value: Any, spec: TensorSpec) -> Any:
    """View the bits of a type that the schema cannot express as the type that stands for it."""
    import torch

    if isinstance(value, torch.Tensor) and spec.shape is not None:
        wanted = torch_dtype(spec.dtype)
        return value.view(wanted) if value.dtype != wanted and value.dtype.itemsize == wanted.itemsize else value
    return value


def _bytes_of(definition: Definition, axes: Mapping[str, int]) -> int:
    sizes = [
        math.prod(axes[axis] for axis in spec.shape) * torch_dtype(spec.dtype).itemsize
        for spec in definition.inputs.values()
        if spec.shape is not None
    ]
    return sum(sizes)


def _load(definition: Definition) -> Callable[..., Any]:
    namespace: dict[str, Any] = {"__name__": "reference"}
    try:
        exec(compile(definition.reference, f"{definition.name}/reference.py", "exec"), namespace)  # noqa: S102  # confined
    except Exception as error:
        raise _MismatchError(f"the reference cannot be loaded: {_describe(error)}") from error
    found: Callable[..., Any] = namespace["run"]
    return found


def _check(
    definition: Definition, run: Callable[..., Any], axes: Mapping[str, int], inputs: dict[str, Any]
) -> dict[str, int]:

    resolved = _bind(definition.inputs, inputs, dict(definition.const_axes))
    versions = _versions(inputs)
    start = time.perf_counter()
    first = _call(definition, run, inputs)
    seconds = time.perf_counter() - start
    mutated = [name for name, version in _versions(inputs).items() if versions[name] != version]
    if mutated:
        raise _MismatchError(f"the reference writes into its input {', '.join(mutated)}", mutated=mutated)
    _check_ranks(definition, first)
    _bind(definition.outputs, first, resolved)
    for name, spec in definition.outputs.items():
        _check_output(name, spec, first[name])
    if seconds > _SLOW_SECONDS and not any(word in definition.reference for word in _CHANCE):
        return {**{name: axes[name] for name in axes if name in definition.axes}, **resolved}
    second = _call(definition, run, inputs)
    different = [name for name, value in first.items() if not _same(value, second[name])]
    if different:
        raise _MismatchError(f"two runs with the same inputs and seed differ in {', '.join(different)}")
    return {**{name: axes[name] for name in axes if name in definition.axes}, **resolved}


def _versions(inputs: Mapping[str, Any]) -> dict[str, int]:
    """Read torch's count of writes into each tensor, through any view of it."""
    import torch

    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    return {name: value._version for name, value in tensors.items()}  # noqa: SLF001  # no public name


def _call(definition: Definition, run: Callable[..., Any], inputs: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    try:
        with torch.no_grad():
            result = run(*inputs.values())
    except MemoryError:
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise MemoryError from error
        raise _MismatchError(f"the reference raised {_describe(error)}") from error
    values = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(values) != len(definition.outputs):
        raise _MismatchError(f"the reference returns {len(values)} values for {len(definition.outputs)} outputs")
    return dict(zip(definition.outputs, values, strict=True))


def _bind(specs: Mapping[str, TensorSpec], values: Mapping[str, Any], axes: dict[str, int]) -> dict[str, int]:
    """Check every dimension against the axes bound so far, and bind those that are new."""
    import torch

    for name, spec in specs.items():
        value = values[name]
        if spec.shape is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise _MismatchError(f"{name} is {type(value).__name__}, not a tensor")
        if value.dim() != len(spec.shape):
            raise _MismatchError(f"{name} has {value.dim()} dimensions, declared {spec.shape}")
        for axis, length in zip(spec.shape, value.shape, strict=True):
            if axes.setdefault(axis, length) != length:
                raise _MismatchError(f"{name} has {axis} = {length}, elsewhere {axes[axis]}")
    return axes


def _check_ranks(definition: Definition, values: Mapping[str, Any]) -> None:
    """Tell apart an output that only needs flattening, as scale factors of quantisers do."""
    for name, spec in definition.outputs.items():
        shape = list(getattr(values[name], "shape", ()))
        if spec.shape is not None and len(spec.shape) == 1 and len(shape) > 1:
            raise _MismatchError(f"{name} has {len(shape)} dimensions, declared {spec.shape}", flat=[name])


def _check_output(name: str, spec: TensorSpec, value: Any) -> None:
    import torch

    if spec.shape is None:
        return
    if value.dtype != torch_dtype(spec.dtype):
        raise _MismatchError(
            f"{name} has the dtype {value.dtype}, declared {spec.dtype.value}",
            dtypes={name: str(value.dtype).removeprefix("torch.")},
        )
    if not value.is_floating_point() or value.dtype.itemsize < 2:
        return
    if bool(torch.isnan(value).any()):
        raise _MismatchError(f"{name} holds NaN")
    if bool(torch.isinf(value).any()) and not any(word in name.lower() for word in _INF_OUTPUTS):
        raise _MismatchError(f"{name} holds infinities")


def _same(first: Any, second: Any) -> bool:
    import torch

    if not isinstance(first, torch.Tensor):
        return bool(first == second)
    if first.numel() == 0 or first.dtype.itemsize < 2:
        return bool(torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8)))
    return bool(torch.equal(torch.nan_to_num(first.float()), torch.nan_to_num(second.float())))


def _is_shared(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.numel() > 1 and 0 in value.stride() and max(value.shape) > 1
