"""The least work of a matrix product, in whatever number format."""

from __future__ import annotations

import math

from fib_tools.model.definition import DType
from fib_tools.op_types.work_request import Work, WorkRequest

__all__ = ["product_work"]


def product_work(request: WorkRequest) -> Work | None:
    """Count C = A @ B with everything that is read beside them, scales and bias; the axis K has the plain length."""
    if not request.has("A", "B") or "K" not in request.axes:
        return None
    size = math.prod(request.shape(next(iter(request.definition.outputs))))
    is_packed = request.definition.inputs["A"].dtype is DType.INT8
    return Work(
        read=request.read(*request.select_values(DType)),
        written=request.written(),
        flops=2 * size * request.axes["K"],
        unit="fp4" if is_packed else request.unit("A"),
    )
