"""Runs FlashInfer with a folder applied, and looks at what each call was dispatched to. It prints nothing.

FlashInfer reads two variables when it is imported and patches its APIs then, so this is a process of its own: what it
does not import by itself it never patches. A call that a Solution takes is counted as a hit, any other as a fall-back,
before the original is called; so that a fall-back shows on tensors without memory too, which the original refuses.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["check"]

_LONGEST = 600


def check(payload: dict[str, Any]) -> dict[str, Any]:
    """Enable the folder as an engine does, and make each call; outcomes are in the order of the calls."""
    home = os.environ.get("HOME", ".")
    os.environ.setdefault("FLASHINFER_WORKSPACE_BASE", home)
    os.environ["FLASHINFER_TRACE_APPLY"] = "1"
    os.environ["FLASHINFER_TRACE_APPLY_PATH"] = payload["folder"]
    _stand_in_for_streams()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        importlib.import_module("flashinfer")
    problem = next((str(each.message) for each in caught if "trace apply" in str(each.message).lower()), "")
    return {"problem": problem, "calls": [] if problem else [_check_call(call) for call in payload["calls"]]}


def _stand_in_for_streams() -> None:
    """Answer for a torch without CUDA whether a stream is being captured: FlashInfer asks at each new name."""
    import torch

    if not torch.cuda.is_available():
        torch.cuda.is_current_stream_capturing = lambda: False


def _check_call(call: dict[str, Any]) -> dict[str, Any]:
    import torch

    from fib_tools.model.definition import Definition
    from fib_tools.op_types.axes import choose_axes
    from fib_tools.op_types.inputs import generate_inputs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    definition = Definition.model_validate(call["definition"])
    inputs = generate_inputs(definition, choose_axes(definition), device=device)
    outcome, detail = _make(call, inputs)
    found = {"outcome": outcome, "detail": detail[:_LONGEST], "device": device}
    if outcome == "hit":
        found["falls_back"] = _find_fall_back(call, definition)
        if device == "cuda":
            found["graph"] = _try_graph(call, inputs)
    return found


def _make(call: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[str, str]:
    """Make one call, and tell what FlashInfer counted: hit, fallback_no_candidate, error or nothing."""
    before = _count(call["fi_api"])
    detail = ""
    try:
        _call(call, inputs)
    except Exception as error:  # noqa: BLE001  # a Solution, or FlashInfer without a GPU, may raise anything
        detail = f"{type(error).__name__}: {error}"
    after = _count(call["fi_api"])
    counted = [status for status, count in after.items() if count > before.get(status, 0)]
    return (counted[0] if counted else "nothing"), detail


def _count(fi_api: str) -> dict[str, int]:
    from flashinfer import trace_apply

    merged: dict[str, int] = {}
    name = fi_api.rpartition(".")[2] if not _is_method(fi_api) else ".".join(fi_api.split(".")[-2:])
    for api, counts in trace_apply.stats().items():
        if api == fi_api or api.endswith(f".{name}"):  # one API may be counted under the module it moved to
            for status, count in counts.items():
                merged[status] = merged.get(status, 0) + count
    return merged


def _is_method(fi_api: str) -> bool:
    return fi_api.split(".")[-2][:1].isupper()


def _call(call: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    owner, name = _resolve(call["fi_api"])
    arguments = _arrange(call, inputs)
    if not inspect.isclass(owner):
        return getattr(owner, name)(**arguments)
    from flashinfer.trace_apply import plan_capture

    instance = object.__new__(owner)
    adapter = plan_capture.adapter_for(call["fi_api"])
    planned = adapter.plan_inputs if adapter else {}
    own = {call["keys"].get(key, key): value for key, value in inputs.items()}
    plan_capture.stash_plan_kwargs(instance, {parameter: own.get(key) for key, parameter in planned.items()})
    method = getattr(owner, name)
    taken = {key: value for key, value in arguments.items() if key in inspect.signature(method).parameters}
    return method(instance, **taken, return_lse=True)


def _resolve(fi_api: str) -> tuple[Any, str]:
    *front, name = fi_api.split(".")
    for end in range(len(front), 0, -1):
        module = sys.modules.get(".".join(front[:end]))
        if module is not None:
            owner: Any = module
            for part in front[end:]:
                owner = getattr(owner, part)
            return owner, name
    raise ImportError(f"FlashInfer does not import {fi_api}")


def _arrange(call: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Put inputs under the API's parameters, several of one parameter as a tuple, beside the plain arguments."""
    gathered: dict[str, list[Any]] = {}
    for own, key in call["keys"].items():
        gathered.setdefault(call["parameters"].get(key, key), []).append(inputs[own])
    tensors = {name: values[0] if len(values) == 1 else tuple(values) for name, values in gathered.items()}
    return {**call["plain"], **tensors}


def _find_fall_back(call: Mapping[str, Any], definition: Any) -> str:
    """Find a const axis with another length of which the call falls back; empty when every size is dispatched."""
    from fib_tools.op_types.axes import choose_axes

    lengths = choose_axes(definition)
    for axis in definition.const_axes:
        shapes = [spec.shape for spec in definition.inputs.values() if spec.shape]
        if not any(axis in shape for shape in shapes):
            continue
        changed = {**lengths, axis: lengths[axis] + 16}
        if _make(call, _make_empty(definition, changed))[0] == "fallback_no_candidate":
            return str(axis)
    return ""


def _make_empty(definition: Any, lengths: Mapping[str, int]) -> dict[str, Any]:
    import torch

    from fib_tools.op_types.input_request import torch_dtype

    return {
        name: 1.0
        if spec.shape is None
        else torch.empty([lengths[axis] for axis in spec.shape], dtype=torch_dtype(spec.dtype), device="meta")
        for name, spec in definition.inputs.items()
    }


def _try_graph(call: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """Capture the call in a CUDA graph and replay it; say what went wrong."""
    import torch

    before = _count(call["fi_api"]).get("hit", 0)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            _call(call, inputs)
        graph.replay()
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001  # a Solution may raise anything
        return f"{type(error).__name__}: {error}"[:_LONGEST]
    return "" if _count(call["fi_api"]).get("hit", 0) > before else "in a CUDA graph it fell back"


def main() -> None:
    """Read a payload from one file and write the answer to another, both named on the command line."""
    source, target = (Path(argument) for argument in sys.argv[1:3])
    answer = check(json.loads(source.read_text(encoding="utf-8")))
    target.write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
