"""Rotary embedding: the function of each modeling file that turns queries and keys by the tokens' cosines and sines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.functions import name_dtype
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_rotary"]

_NAME = "apply_rotary_pos_emb"
_DIMS = 4
_TOLERANCE = 2e-2


def patch_rotary(patches: Patches, watch: Watch, modules: Iterable[torch.nn.Module]) -> None:
    """Watch the functions by that name in the files that modules are defined in."""
    for name in sorted({type(module).__module__ for module in modules}):
        file = sys.modules.get(name)
        for found in [key for key in vars(file) if key.startswith(_NAME)] if file is not None else ():
            patches.wrap(file, found, lambda original: _watch_rotary(watch, original))


def _watch_rotary(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    def rotary(q: Any, k: Any, cos: Any, sin: Any, *more: Any, **options: Any) -> Any:
        if watch.is_blind:
            return original(q, k, cos, sin, *more, **options)
        key = ("rope", original, q.shape, k.shape, cos.shape, q.dtype)
        return watch.call(
            key, lambda result: _describe(q, k, cos, sin, result), original, q, k, cos, sin, *more, **options
        )

    return rotary


def _describe(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, result: Any) -> Call | Unmapped:
    """Describe `[batch, heads, tokens, dim]`; which elements make a pair is seen in what came out."""
    if q.dim() != _DIMS or k.dim() != _DIMS:
        return Unmapped(what="rope", reason=f"queries have the shape {list(q.shape)}, not [batch, heads, tokens, dim]")
    found = _find_pairs(q, cos, sin, result[0])
    if found is None:
        return Unmapped(what="rope", reason="it pairs neither i with i + d/2 nor 2i with 2i + 1")
    rotary_dim, is_neox = found
    parameters = {
        "num_heads": q.shape[1],
        "head_dim": q.shape[-1],
        "rotary_dim": rotary_dim,
        "is_neox": is_neox,
        "dtype": name_dtype(q.dtype),
    }
    axes = {"num_tokens": q.shape[0] * q.shape[2], "num_kv_heads": k.shape[1]}
    return Call(kernel="rope", parameters=parameters, axes=axes)


def _find_pairs(q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: torch.Tensor) -> tuple[int, bool] | None:
    """Find how many elements turn, and whether i goes with i + d/2, by the last token, whose angles are not all 0.

    Its angles come once for each pair, or twice: side by side, or each beside itself.
    """
    c, s = (angles.reshape(-1, angles.shape[-1])[-1].float() for angles in (cos, sin))
    count = len(c)
    for size, first in ((2 * count, slice(None)), (count, slice(None, count // 2)), (count, slice(None, None, 2))):
        x, got = (side[-1, 0, -1, :size].float() for side in (q, turned))
        if len(x) != size:
            continue
        for is_neox in (True, False):
            if _turns(x, got, c[first], s[first], is_neox=is_neox):
                return size, is_neox
    return None


def _turns(x: torch.Tensor, got: torch.Tensor, c: torch.Tensor, s: torch.Tensor, *, is_neox: bool) -> bool:
    """Tell whether pairs of `x` turned by so much are `got`, in the order of `x` or with the pairs taken apart."""
    import torch

    a, b = x.chunk(2) if is_neox else (x[0::2], x[1::2])
    turned = (a * c - b * s, b * c + a * s)
    orders = [torch.cat(turned)] if is_neox else [torch.stack(turned, dim=-1).flatten(), torch.cat(turned)]
    return any(torch.allclose(got, each, rtol=_TOLERANCE, atol=_TOLERANCE) for each in orders)
