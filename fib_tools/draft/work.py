"""What one call must do at least, counted without the device: a brief says it before anything was measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fib_tools.errors import FibError
from fib_tools.evaluate.judge.given import load_given_inputs
from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition
from fib_tools.model.workload import Workload
from fib_tools.op_types.inputs import plan_inputs
from fib_tools.op_types.work import Work, find_work

__all__ = ["count_work"]

_BYTE_BUDGET = 16 << 20
"""Of one tensor: a longer one shares storage, and is counted by its shape alone."""


def count_work(definition: Definition, workload: Workload, root: Path) -> Work | None:
    """Count the bytes and the FLOPs of a Workload; None where torch or one of its blobs is missing."""
    if importlib.util.find_spec("torch") is None:
        return None
    axes = {**workload.axes, **definition.const_axes}
    try:
        fixed = load_given_inputs(to_document(workload)["inputs"], device="cpu", root=root)
        plan = plan_inputs(definition, axes, seed=0, device="cpu", fixed=fixed, byte_budget=_BYTE_BUDGET)
        made = plan.make(0)
    except (FibError, OSError):
        return None
    whole = {name: value for name, value in made.items() if not hasattr(value, "stride") or 0 not in value.stride()}
    return find_work(definition, axes, whole)
