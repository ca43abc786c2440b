"""RMSNorm, plain and fused with the addition before it, and LayerNorm: found by what a module computes, not by which model it is of."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.functions import list_settings, name_dtype
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Described, Operator, Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_norms"]

_EPS = ("variance_epsilon", "eps", "epsilon")
_TOLERANCE = 1e-2
_FUSED = {"rmsnorm": "fused_add_rmsnorm", "gemma_rmsnorm": "gemma_fused_add_rmsnorm"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sign:
    """What tells norms of one class apart."""

    kind: type
    eps: float | None
    """None if no attribute says it."""
    has_weight: bool
    has_bias: bool
    settings: tuple[tuple[str, Hashable], ...]
    """Attributes such as an offset."""


def patch_norms(patches: Patches, watch: Watch, modules: Iterable[torch.nn.Module]) -> None:
    """Watch the classes of modules that are called norms; torch's own go through its functions."""
    found: dict[type, list[Any]] = {}
    for module in modules:
        if _is_norm(module):
            found.setdefault(type(module), []).append(module)
    for kind, same in found.items():
        patches.wrap(kind, "forward", partial(_wrap_norm, watch, same))


def _wrap_norm(watch: Watch, modules: Sequence[Any], original: Callable[..., Any]) -> Callable[..., Any]:
    return watch.wrap(_make_norm(watch, modules, original), original)


def _is_norm(module: torch.nn.Module) -> bool:
    kind = type(module)
    is_torch = kind.forward.__module__.startswith("torch.nn") and kind.__name__ != "RMSNorm"
    return "Norm" in kind.__name__ and not is_torch and not any(True for _ in module.children())


def _make_norm(watch: Watch, modules: Sequence[Any], original: Callable[..., Any]) -> Operator:
    numbers: dict[_Sign, int] = {}
    """Of each sign: at each call a number takes less time than what it stands for."""
    signs = {module: numbers.setdefault(_sign(module), len(numbers)) for module in modules}
    kinds: dict[Hashable, Callable[[], str]] = {}

    def key(module: Any, *inputs: Any, **options: Any) -> Hashable:
        rows = inputs[0] if inputs else next(iter(options.values()))
        sign = signs.get(module)
        if sign is None:  # made since the run began
            sign = numbers.setdefault(_sign(module), len(numbers))
        return sign, rows.shape, rows.dtype, watch.is_sum(rows), len(inputs) + len(options)

    def describe(key: Any, result: Any, module: Any, *inputs: Any, **options: Any) -> Described:
        del result
        sign, is_fused = _sign(module), key[3]
        rows, *more = (*inputs, *options.values())
        if more:
            return _describe_norm(sign, rows.shape, rows.dtype, "", is_fused=is_fused)
        known = (sign, rows.shape[-1])
        if known not in kinds:
            kinds[known] = _try_norm(module, rows, sign.eps or 0.0, original)
        return partial(_settle, kinds[known], sign, rows.shape, rows.dtype, is_fused=is_fused)

    return Operator(name="norm", key=key, describe=describe)


def _sign(module: Any) -> _Sign:
    """Read it once for each module: asking one for an attribute that it has not got takes microseconds."""
    return _Sign(
        kind=type(module),
        eps=next((float(eps) for name in _EPS if (eps := getattr(module, name, None)) is not None), None),
        has_weight=getattr(module, "weight", None) is not None,
        has_bias=getattr(module, "bias", None) is not None,
        settings=list_settings(module),
    )


def _try_norm(module: Any, rows: torch.Tensor, eps: float, forward: Callable[..., Any]) -> Callable[[], str]:
    """Try a row; which formula gives the same is found when it is asked for, as a GPU has to be waited for."""
    import torch

    weight, bias = (
        None if value is None else value.detach().clone()
        for value in (getattr(module, name, None) for name in ("weight", "bias"))
    )
    if weight is not None and weight.dim() != 1:
        return lambda: ""
    like, size = (rows, rows.shape[-1]) if weight is None else (weight, weight.numel())
    row = torch.linspace(-1, 2, size, device=like.device, dtype=torch.float32)[None].to(like.dtype)
    got = forward(module, row)
    if not isinstance(got, torch.Tensor) or got.shape != row.shape:
        return lambda: ""
    return cache(partial(_recognise, row, got, eps, weight, bias))


def _recognise(
    row: torch.Tensor, got: torch.Tensor, eps: float, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> str:
    """Find the formula that makes of a row what was got; empty if none does."""
    import torch

    for kind, wanted in _list_formulas(row.float(), eps, weight, bias).items():
        if torch.allclose(got.float(), wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
            return kind
    return ""


def _list_formulas(
    row: torch.Tensor, eps: float, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    import torch

    plain = row * torch.rsqrt(row.square().mean(dim=-1, keepdim=True) + eps)
    if weight is None:
        return {"rmsnorm_noweight": plain}
    scale, shift = weight.float(), 0.0 if bias is None else bias.float()
    centred = row - row.mean(dim=-1, keepdim=True)
    centred = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    return {
        "rmsnorm": plain * scale,
        "gemma_rmsnorm": plain * (1 + scale),
        "layernorm": centred * scale + shift,
    }


def _settle(
    find_kind: Callable[[], str], sign: _Sign, shape: torch.Size, dtype: torch.dtype, *, is_fused: bool
) -> Call | Unmapped:
    found = _describe_norm(sign, shape, dtype, find_kind(), is_fused=is_fused)
    return replace(found, shapes=(tuple(shape),)) if isinstance(found, Unmapped) else found


def _describe_norm(sign: _Sign, shape: torch.Size, dtype: torch.dtype, kind: str, *, is_fused: bool) -> Call | Unmapped:
    name = sign.kind.__name__
    if not kind:
        plain = "rmsnorm" if sign.has_weight else "rmsnorm_noweight"
        kernel = "rmsnorm_gated" if "Gated" in name else plain if "RMS" in name else ""
        reason = "it computes none of x * w / rms, x * (1 + w) / rms and LayerNorm"
        return Unmapped(
            what=name, kernel=kernel, reason=reason if sign.has_weight else "it has no weight, and is not x / rms"
        )
    kernel = _FUSED.get(kind, kind) if is_fused else kind
    if sign.eps is None:
        return Unmapped(what=name, kernel=kernel, reason=f"its eps is none of its attributes {', '.join(_EPS)}")
    size = shape[-1]
    parameters = {"hidden_size": size, "eps": sign.eps, "dtype": name_dtype(dtype)}
    if kind == "layernorm":
        parameters["bias"] = sign.has_bias
    axes = {"batch_size": shape.numel() // size}
    return Call(kernel=kernel, parameters=parameters, axes=axes, rows=tuple(shape[:-1]))
