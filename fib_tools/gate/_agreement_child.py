"""What runs in the sandbox: a Definition's reference and another function, on the same inputs, compared in float64.

The tolerance of an output follows from how exactly its values can be computed at all; see `_unit`.
"""

from __future__ import annotations

import errno
import importlib
import math
import os
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fib_tools.errors import FibError
from fib_tools.gate.trial import TRIAL_AXES, make_trial_inputs
from fib_tools.model.base import read_lenient
from fib_tools.model.definition import Definition
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.input_request import torch_dtype
from fib_tools.op_types.registry import find_op_type

__all__ = ["compare"]

_RESERVE = 4
"""Both sides round their result and, where they go another way, one step before it."""
_MEAN_RESERVE = 2
"""Of the root mean square of the differences: rounding scatters, another formula does not."""
_INNER_SHARE = 0.25
"""Of the spacing of a narrow type, for what is rounded to it before a sum, relative to the sum's largest term."""
_SINGLE_UNIT = 2.0**-24
"""Unit roundoff of float32, in which references and forwards sum."""
_MESSAGE_LENGTH = 300


class _Disagreement(Exception):  # noqa: N818  # no error: an answer
    """What differs."""


class _ReferenceFailed(_Disagreement):
    """The reference does not take these inputs."""


class _Unavailable(Exception):  # noqa: N818  # no error: an answer
    """Why there is nothing to compare with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    """Inputs to compare on."""

    definition: Definition
    inputs: dict[str, Any]
    longest: int
    """The longest axis: more terms than that no sum has."""


def compare(payload: dict[str, Any]) -> dict[str, Any]:
    """Compare on each scale of the inputs; the answer has `agrees`, or `unavailable` with the reason."""
    definition = read_lenient(Definition, payload["document"], where="definition")
    try:
        _import_all(payload["modules"])
        reference = _load(definition.reference, "run", where="reference")
        other = _load(payload["other"], payload["function"], where=payload["function"])
        worst: dict[str, Any] = {}
        for scale in payload["scales"]:
            case = _make_case(definition, payload, scale)
            try:
                measures = _compare_case(case, reference, other, function=payload["function"])
            except _ReferenceFailed:
                if scale == 1:
                    raise
                continue  # probabilities and the like cannot be scaled
            for name, measure in measures.items():
                worst[name] = max(worst.get(name, measure), measure, key=lambda item: item["share"])
    except _Unavailable as reason:
        return {"agrees": False, "unavailable": str(reason)}
    except _Disagreement as reason:
        return {"agrees": False, "reason": str(reason)}
    return {"agrees": True, "outputs": worst}


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:_MESSAGE_LENGTH]}"


def _place(error: BaseException) -> str:
    """Say which line of the imported packages gave up."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" (at {'/'.join(Path(frames[-1].filename).parts[-3:])}:{frames[-1].lineno})" if frames else ""


def _start_nothing(*_: Any, **__: Any) -> None:
    raise FileNotFoundError(errno.ENOENT, "no process can be started in the sandbox")


def _import_all(modules: list[str]) -> None:
    """Import what the other function builds on, in this process only; that may fail in any way a package can."""
    tempfile.tempdir = None  # was chosen before this process was given its scratch folder
    if modules:
        # packages that probe for tools are ready for one that is not installed, not for one that may not be started
        os.environ["PATH"] = str(Path.cwd())
        subprocess.Popen.__init__ = _start_nothing  # type: ignore[method-assign]
    for name in modules:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise _Unavailable(f"{name} cannot be imported here: {_describe(error)}{_place(error)}") from error


def _load(source: str, function: str, *, where: str) -> Callable[..., Any]:
    namespace: dict[str, Any] = {"__name__": where}
    try:
        exec(compile(source, f"{where}.py", "exec"), namespace)  # noqa: S102  # confined child
    except Exception as error:
        raise _classify(error, f"{where} cannot be loaded") from error
    found: Callable[..., Any] = namespace[function]
    return found


def _classify(error: BaseException, what: str) -> Exception:
    """Tell a package that is missing from a mistake in what was submitted."""
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("sglang"):
        return _Unavailable(f"{what}: {_describe(error)}")
    return _Disagreement(f"{what}: {_describe(error)}")


def _make_case(definition: Definition, payload: Mapping[str, Any], scale: float) -> _Case:
    op_type = find_op_type(definition.op_type)
    own = op_type.axis_sizes if op_type else {}
    sizes = {name: size for name, size in TRIAL_AXES.items() if name in definition.axes and name not in own}
    try:
        axes = choose_axes(definition, sizes)
        made = make_trial_inputs(definition, axes, seed=payload["seed"], byte_budget=payload["byte_budget"])
    except (FibError, RuntimeError, ValueError, KeyError) as error:
        raise _Disagreement(f"no inputs by rule: {_describe(error)}") from error
    inputs = {name: _scaled(value, scale) for name, value in made.items()}
    return _Case(definition=definition, inputs=inputs, longest=max([*axes.values(), 1]))


def _is_wide_float(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype.itemsize > 1


def _scaled(value: Any, scale: float) -> Any:
    return value if scale == 1 or not _is_wide_float(value) else value * scale


def _compare_case(
    case: _Case, reference: Callable[..., Any], other: Callable[..., Any], *, function: str
) -> dict[str, dict[str, float]]:
    try:
        expected = _call(reference, case, "the reference")
    except _Disagreement as error:
        raise _ReferenceFailed(str(error)) from error
    found = _call(other, case, function)
    exact, wide = _call_in_double(reference, case), _call_in_double(other, case)
    names = list(case.definition.outputs)
    if len(found) != len(names):
        raise _Disagreement(f"{function} returns {len(found)} values for the outputs {', '.join(names)}")
    measures = {}
    for place, name in enumerate(names):
        spec = case.definition.outputs[name]
        if spec.shape is None:
            continue
        value = _check_tensor(name, found[place], expected[place], torch_dtype(spec.dtype))
        true = exact[place] if exact else None
        measures[name] = _measure(name, value, expected[place], true, case.longest)
        if wide and _is_comparable(true, expected[place]) and _is_comparable(wide[place], expected[place]):
            measures[name] = _measure_wide(name, wide[place], true, expected[place], case.longest)
    return measures


def _is_comparable(value: Any, expected: Any) -> bool:
    return _is_wide_float(value) and value.shape == expected.shape and expected.dtype.itemsize > 1


def _call(function: Callable[..., Any], case: _Case, what: str) -> list[Any]:
    """Call with tensors of its own, since some forwards write into their inputs; repeated storage cannot be written."""
    import torch

    own = [_copy(value) for value in case.inputs.values()]
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            result = function(*own)
    except MemoryError:
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise MemoryError from error
        raise _classify(error, f"{what} raised") from error
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _copy(value: Any) -> Any:
    import torch

    is_own = isinstance(value, torch.Tensor) and 0 not in value.stride()
    return value.clone() if is_own else value


def _call_in_double(function: Callable[..., Any], case: _Case) -> list[Any] | None:
    """Call on the same values in float64; None where that is not taken."""
    import torch

    own = [_copy(value).double() if _is_wide_float(value) else _copy(value) for value in case.inputs.values()]
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            result = function(*own)
    except Exception:  # noqa: BLE001  # untrusted code, asked for what it need not do
        return None
    values = list(result) if isinstance(result, (tuple, list)) else [result]
    return values if len(values) == len(case.definition.outputs) else None


def _check_tensor(name: str, value: Any, expected: Any, dtype: Any) -> Any:
    import torch

    if not isinstance(value, torch.Tensor):
        raise _Disagreement(f"{name} is {type(value).__name__}, not a tensor")
    if list(value.shape) != list(expected.shape):
        raise _Disagreement(f"{name} has the shape {list(value.shape)}, the reference gives {list(expected.shape)}")
    if value.dtype != dtype:
        raise _Disagreement(f"{name} has the dtype {value.dtype}, declared {dtype}: cast it with .to({dtype})")
    return value


def _measure(name: str, value: Any, expected: Any, exact: Any, longest: int) -> dict[str, float]:
    """Compare one output; `share` is how much of what is allowed was used."""
    import torch

    if expected.numel() == 0:
        return {"share": 0.0, "worst": 0.0, "allowed": 0.0}
    if not expected.is_floating_point() or "float4" in str(expected.dtype):
        return _measure_exact(name, value, expected)
    left, right = value.double(), expected.double()
    _check_special(name, left, right)
    left, right = torch.nan_to_num(left, 0, 0, 0), torch.nan_to_num(right, 0, 0, 0)
    info = torch.finfo(expected.dtype)
    if expected.dtype.itemsize == 1:
        allowed = info.eps * torch.maximum(left.abs(), right.abs()) + info.smallest_normal
        return _judge(name, left, right, allowed)
    rows = right.abs().amax(dim=-1, keepdim=True) if right.dim() else right.abs()
    unit = _unit(info.eps, right, exact, rows, longest)
    measure = _judge(name, left, right, _RESERVE * unit * rows + info.smallest_normal)
    mean = float(torch.linalg.vector_norm(left - right) / torch.linalg.vector_norm(right).clamp_min(1e-300))
    if mean > _MEAN_RESERVE * unit:
        most = (left - right).abs() == (left - right).abs().max()
        raise _Disagreement(
            f"{name} differs by {mean:.3g} of its norm, allowed {_MEAN_RESERVE * unit:.3g}: more than rounding explains; "
            f"most at {_first(most, left, right)}"
        )
    return measure


def _measure_wide(name: str, value: Any, true: Any, expected: Any, longest: int) -> dict[str, float]:
    """Compare what both sides make of float64 inputs: only what they round on purpose stands between them.

    That shows another formula which the rounding of narrow types would hide.
    """
    import torch

    left, right = value.double(), true.double()
    _check_special(name, left, right)
    left, right = torch.nan_to_num(left, 0, 0, 0), torch.nan_to_num(right, 0, 0, 0)
    eps = max(torch.finfo(value.dtype).eps, torch.finfo(true.dtype).eps)
    rows = right.abs().amax(dim=-1, keepdim=True) if right.dim() else right.abs()
    scattered = max(_INNER_SHARE * eps, _RESERVE * _SINGLE_UNIT * math.sqrt(longest))
    allowed = 2 * eps * right.abs() + scattered * rows + torch.finfo(expected.dtype).smallest_normal
    return {**_judge(f"{name} (with inputs in float64)", left, right, allowed), "wide": 1.0}


def _unit(eps: float, right: Any, exact: Any, rows: Any, longest: int) -> float:
    """Say how exactly an output can be known, relative to the largest value of its row.

    The largest of: the spacing of its type (`torch.finfo.eps`); the error of the reference itself against its run in
    float64; and sqrt(n) u, the likely error of a float32 sum of n terms (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., 2.8 and 4.2).
    """
    import torch

    measured = 0.0
    if isinstance(exact, torch.Tensor) and exact.shape == right.shape and exact.is_floating_point():
        error = (right - exact.double()).abs() / rows.clamp_min(torch.finfo(torch.float32).tiny)
        finite = error[torch.isfinite(error)]
        measured = float(finite.max()) if finite.numel() else 0.0
    # a reference that is wrong by more than this in its own type is no measure of anything
    return max(eps, min(measured, 8 * eps), _SINGLE_UNIT * math.sqrt(longest))


def _check_special(name: str, left: Any, right: Any) -> None:
    import torch

    for what, test in (("NaN", torch.isnan), ("infinity", torch.isinf)):
        wrong = test(left) != test(right)
        if bool(wrong.any()):
            raise _Disagreement(f"{name}: {what} on one side only, first at {_first(wrong, left, right)}")


def _measure_exact(name: str, value: Any, expected: Any) -> dict[str, float]:
    import torch

    if "float4" in str(expected.dtype):
        value, expected = value.view(torch.uint8), expected.view(torch.uint8)
    wrong = value != expected
    if bool(wrong.any()):
        raise _Disagreement(
            f"{name}: {_count(wrong)} differ (must be equal), first at {_first(wrong, value, expected)}"
        )
    return {"share": 0.0, "worst": 0.0, "allowed": 0.0}


def _judge(name: str, left: Any, right: Any, allowed: Any) -> dict[str, float]:
    import torch

    difference = (left - right).abs()
    allowed = allowed.expand_as(difference)
    wrong = difference > allowed
    if bool(wrong.any()):
        index = torch.nonzero(wrong.reshape(-1))[0].item()
        limit = float(allowed.reshape(-1)[index])
        raise _Disagreement(
            f"{name}: {_count(wrong)} differ, first at {_first(wrong, left, right)}, allowed {limit:.3g}"
        )
    share = (difference / allowed.clamp_min(1e-300)).reshape(-1)
    worst = int(share.argmax())
    return {
        "share": float(share[worst]),
        "worst": float(difference.reshape(-1)[worst]),
        "allowed": float(allowed.reshape(-1)[worst]),
    }


def _count(wrong: Any) -> str:
    return f"{int(wrong.sum())} of {wrong.numel()} elements"


def _first(wrong: Any, left: Any, right: Any) -> str:
    import torch

    index = tuple(torch.nonzero(wrong)[0].tolist())
    return f"{list(index)}: {left[index].item():.6g}, the reference has {right[index].item():.6g}"
