"""Parameters of a kernel as the inventory has them and as a dump has them: which of them tell kernels apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fib_tools.op_types.registry import find_kernel_type

__all__ = ["is_size", "list_differing", "read_parameters"]

_SHARED = ("dtype", "state_dtype", "routed_scaling_factor")
"""What FlashInfer does not route by and dumps of dummy weights share, and an input whose value makes no other kernel."""
_SIZES = ("n", "k", "b", "page_size", "causal", "intermediate_size", "hidden_size", "kv_dtype")
_CLOSE = 1e-5
"""Relative; a scale that was computed in another order of operations."""


def read_parameters(kernel: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Write out the parameters that tell kernels of one type apart, with their defaults."""
    kernel_type = find_kernel_type(kernel)
    values = kernel_type.parameters.model_validate(dict(parameters)).model_dump() if kernel_type else parameters
    return {name: value for name, value in values.items() if name not in _SHARED}


def list_differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """List the names of the parameters that differ."""
    return [name for name in sorted({*first, *second}) if not _is_equal(first.get(name), second.get(name))]


def is_size(name: str) -> bool:
    """Tell whether two values of a parameter are two kernels of one list, and not one of them wrong."""
    return name in _SIZES or name.startswith("num_")


def _is_equal(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=_CLOSE)
    return bool(first == second)
