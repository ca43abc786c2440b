"""Calls of FlashInfer's product with an FP8 weight in blocks, which may quantise the rows itself.

A Definition of the product is given rows that are quantised: what such a call tells of it is how many there are.
"""

from __future__ import annotations

from fib_tools.capture.collection.dumps import Call
from fib_tools.capture.collection.observation import Observation, Seen, see_all
from fib_tools.errors import FormatError

__all__ = ["PRODUCT_FUNCTION", "observe_product"]

PRODUCT_FUNCTION = "fp8_blockscale_gemm_sm90"
_FP8 = "float8_e4m3fn"


def observe_product(call: Call) -> Observation:
    """Read a call as the product of quantised rows `[M, K]` and a weight `[N, K]`, with the scales of both.

    Raises:
        FormatError: its weight is of another format, or has no scales.
    """
    tensors = see_all(call)
    rows, weight, scale = (tensors.get(name) for name in ("input", "weight", "weight_scale"))
    if rows is None or weight is None or weight.dtype != _FP8 or scale is None or len(scale.shape) != len(weight.shape):
        raise FormatError("only FP8 weights with the scales of their blocks are read", where=call.folder.name)
    given = tensors.get("input_scale") if rows.dtype == _FP8 else None
    blocks = Seen(shape=(*rows.shape[:-1], scale.shape[-1]), dtype="float32")
    return Observation(
        call=call,
        tensors={
            "A": rows if given else Seen(shape=rows.shape, dtype=_FP8),
            "B": weight,
            "A_scale": given or blocks,
            "B_scale": scale,
        },
        notes=() if given else ("rows are quantised inside of the call",),
    )
