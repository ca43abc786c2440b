"""What runs in the sandbox to compare a Solution with float64: its call in one process, the comparison in another.

The Solution never shares a process with what it is compared with, and its outputs come as bytes alone.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import torch

from fib_tools.errors import FormatError
from fib_tools.evaluate._runner.caches import keep_caches_here
from fib_tools.evaluate._runner.workload import OpenWorkload
from fib_tools.evaluate.calibration._calibrate_child import Subject
from fib_tools.evaluate.calibration.faults import widen
from fib_tools.evaluate.inspection._call import Call, open_described, read_definition
from fib_tools.evaluate.judge.measures import relative_to, row_rms, split_rows
from fib_tools.op_types.tolerance import Tolerance

__all__ = ["call_solution", "compare_with_exact"]


def call_solution(payload: dict[str, Any]) -> dict[str, Any]:
    """Build the Solution, make one call, and give the bytes of its outputs."""
    call = Call(payload)
    call.make()
    call.deliver()
    return {"outputs": base64.b64encode(call.memory.cpu().numpy().tobytes()).decode()}


def compare_with_exact(payload: dict[str, Any]) -> dict[str, Any]:
    """Compare those outputs, and the reference's, with the reference in float64.

    Raises:
        FormatError: the reference cannot run in float64, or the outputs are not of the size they must have.
    """
    keep_caches_here({})
    definition, unavailable = read_definition(payload), dict[str, str]()
    subject = Subject(
        definition=definition,
        values=frozenset(payload["bounds"]),
        same=frozenset(),
        device=payload["device"],
        unavailable=unavailable,
    )
    workload = open_described(definition, payload)
    inputs = workload.make(payload["seed"])
    wide = widen(definition.reference)
    takes_single = any(isinstance(value, torch.Tensor) and value.dtype == torch.float32 for value in inputs.values())
    if wide == definition.reference and not takes_single:
        raise FormatError("it computes nothing in float32 that could be widened")
    right = subject.call(subject.load(definition.reference, "reference"), "reference", inputs)
    exact = subject.call(subject.load(wide, "float64"), "float64", inputs, is_wide=True)
    if unavailable:
        raise FormatError("; ".join(f"{what}: {reason}" for what, reason in unavailable.items()))
    got = _read_outputs(payload["outputs"], workload)
    bounds = {name: Tolerance(**bound) for name, bound in payload["bounds"].items()}
    return {
        "outputs": {
            name: _measure(got[name].to(right[name]), right[name], exact[name].to(right[name].dtype), bounds[name])
            for name in bounds
        }
    }


def _read_outputs(text: str, workload: OpenWorkload) -> dict[str, torch.Tensor]:
    data = base64.b64decode(text)
    if len(data) != workload.layout.slot_bytes:
        raise FormatError(f"the outputs have {len(data)} bytes, declared are {workload.layout.slot_bytes}")
    return workload.layout.view(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0)


def _measure(got: torch.Tensor, right: torch.Tensor, exact: torch.Tensor, bound: Tolerance) -> dict[str, Any]:
    """Give the largest errors of both against float64, and what the bound allows where the Solution's is largest."""
    sides = [split_rows(side[None])[0].double() for side in (got, right, exact)]
    theirs, reference, want = sides
    errors = [_find_errors(side, want) for side in (theirs, reference)]
    plain = reference.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    allowed = row_rms(plain, plain != reference) * bound.atol + relative_to(plain.abs(), right.dtype) * bound.rtol
    place = int(errors[0].argmax())
    mine, its = (float(each.max()) for each in errors)
    dtype = str(right.dtype).removeprefix("torch.")
    return {"dtype": dtype, "error": mine, "reference_error": its, "bound": float(allowed.flatten()[place])}


def _find_errors(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    same = (got == want) | (got.isnan() & want.isnan())
    return torch.where(same, 0.0, (got - want).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
