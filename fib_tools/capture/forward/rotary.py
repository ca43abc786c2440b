"""Rotary embedding: the function of each modeling file that turns queries and keys by the tokens' cosines and sines."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.functions import name_dtype, tell_shapes
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Described, Operator, Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_rotary"]

_NAME = "apply_rotary_pos_emb"
_ARGUMENTS = ("q", "k", "cos", "sin")
_DIMS = 4
_TOLERANCE = 2e-2


def patch_rotary(patches: Patches, watch: Watch, modules: Iterable[torch.nn.Module]) -> None:
    """Watch the functions by that name in the files that modules are defined in."""
    for name in sorted({type(module).__module__ for module in modules}):
        file = sys.modules.get(name)
        for found in [key for key in vars(file) if key.startswith(_NAME)] if file is not None else ():
            patches.wrap(file, found, partial(_wrap_rotary, watch))


def _wrap_rotary(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    first = list(inspect.signature(original).parameters.values())[: len(_ARGUMENTS)]
    known = tuple(each.name for each in first if each.default is inspect.Parameter.empty)
    return watch.wrap(_ROTARY if known == _ARGUMENTS else _OTHER, original)


def _key(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, *more: Any, **options: Any) -> Hashable:
    del more, options
    return q.shape, k.shape, cos.shape, q.dtype


def _describe(
    key: Any,
    result: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *more: Any,
    **options: Any,
) -> Described:
    """Describe `[batch, heads, tokens, dim]`; which elements make a pair is seen in what came out."""
    import torch

    del key, more, options
    if q.dim() != _DIMS or k.dim() != _DIMS:
        return Unmapped(what="rope", reason=f"queries have the shape {list(q.shape)}, not [batch, heads, tokens, dim]")
    call = Call(
        kernel="rope",
        parameters={"num_heads": q.shape[1], "head_dim": q.shape[-1], "dtype": name_dtype(q.dtype)},
        axes={"num_tokens": q.shape[0] * q.shape[2], "num_kv_heads": k.shape[1]},
        rows=(q.shape[0], q.shape[2]),
    )
    # the last token, whose angles are not all 0; on the device nothing is waited for
    rows = [side[-1, 0, -1].to(torch.float32, copy=True) for side in (q, result[0])]
    angles = [side.reshape(-1, side.shape[-1])[-1].to(torch.float32, copy=True) for side in (cos, sin)]
    return partial(_settle, call, *rows, *angles)


def _settle(
    call: Call, row: torch.Tensor, turned: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> Call | Unmapped:
    found = _find_pairs(*(side.cpu() for side in (row, turned, cos, sin)))
    if found is None:
        return Unmapped(what="rope", kernel="rope", reason="it pairs neither i with i + d/2 nor 2i with 2i + 1")
    rotary_dim, is_neox = found
    return replace(call, parameters={**call.parameters, "rotary_dim": rotary_dim, "is_neox": is_neox})


def _find_pairs(
    row: torch.Tensor, turned: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[int, bool] | None:
    """Find how many elements turn, and whether i goes with i + d/2.

    The angles come once for each pair, or twice: side by side, or each beside itself.
    """
    count = len(cos)
    for size, first in ((2 * count, slice(None)), (count, slice(None, count // 2)), (count, slice(None, None, 2))):
        if len(row) < size:
            continue
        for is_neox in (True, False):
            if _turns(row[:size], turned[:size], cos[first], sin[first], is_neox=is_neox):
                return size, is_neox
    return None


def _turns(x: torch.Tensor, got: torch.Tensor, c: torch.Tensor, s: torch.Tensor, *, is_neox: bool) -> bool:
    """Tell whether pairs of `x` turned by so much are `got`, in the order of `x` or with the pairs taken apart."""
    import torch

    a, b = x.chunk(2) if is_neox else (x[0::2], x[1::2])
    turned = (a * c - b * s, b * c + a * s)
    orders = [torch.cat(turned)] if is_neox else [torch.stack(turned, dim=-1).flatten(), torch.cat(turned)]
    return any(torch.allclose(got, each, rtol=_TOLERANCE, atol=_TOLERANCE) for each in orders)


_ROTARY = Operator(name="rope", key=_key, describe=_describe)
_UNLIKE = Unmapped(
    what="rope",
    kernel="rope",
    reason=f"it does not take {', '.join(_ARGUMENTS)}: queries and keys are turned one by one",
)
_OTHER = Operator(name="rope", key=tell_shapes, describe=lambda *_, **__: _UNLIKE)
