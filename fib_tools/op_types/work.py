"""The least that any correct kernel must do in one call, from which follows the least time that it can take.

It never counts more than is needed: rows that no index names, keys behind a mask, experts that nobody chose and indices,
which `setup` may have read before, are left out. An op_type's own file knows what is special about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.model.definition import Definition, DType
from fib_tools.op_types.registry import find_op_type
from fib_tools.op_types.work_request import Work, WorkRequest

__all__ = ["Work", "find_work"]

_FLOATS = frozenset(dtype for dtype in DType if dtype.value.startswith(("float", "bfloat")))
_INDICES = frozenset({DType.INT16, DType.INT32, DType.INT64})


def find_work(definition: Definition, axes: Mapping[str, int], inputs: Mapping[str, Any]) -> Work:
    """Find a lower bound of the work of one call.

    `inputs` are those of one call, tensors on any device; integers are read. Of an op_type without a count of its own,
    all outputs and, unless there are index tensors, all floating inputs are counted.
    """
    request = WorkRequest(definition=definition, axes=axes, inputs=inputs)
    own = find_op_type(definition.op_type)
    work = own.work(request) if own and own.work else None
    if work is not None:
        return work
    has_indices = bool(request.select_values(_INDICES))
    return Work(read=0 if has_indices else request.read(*request.select_values(_FLOATS)), written=request.written())
