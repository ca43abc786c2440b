"""RMSNorm, plain and fused with the addition before it, and LayerNorm: found by what a module computes, not by which model it is of."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.functions import name_dtype
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Operator, Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_norms"]

_EPS = ("variance_epsilon", "eps", "epsilon")
_TOLERANCE = 1e-2
_FUSED = {"rmsnorm": "fused_add_rmsnorm", "gemma_rmsnorm": "gemma_fused_add_rmsnorm"}


def patch_norms(patches: Patches, watch: Watch, modules: Iterable[torch.nn.Module]) -> None:
    """Watch the classes of modules that are called norms; torch's own go through its functions."""
    for kind in {type(module) for module in modules if _is_norm(module)}:
        patches.wrap(kind, "forward", lambda original: watch.wrap(_make_norm(watch, original), original))


def _is_norm(module: torch.nn.Module) -> bool:
    kind = type(module)
    is_torch = kind.forward.__module__.startswith("torch.nn") and kind.__name__ != "RMSNorm"
    return "Norm" in kind.__name__ and not is_torch and not any(True for _ in module.children())


def _make_norm(watch: Watch, original: Callable[..., Any]) -> Operator:
    kinds: dict[type, str] = {}

    def key(module: Any, *inputs: Any, **options: Any) -> Hashable:
        rows = inputs[0] if inputs else next(iter(options.values()))
        return type(module), rows.shape, rows.dtype, watch.is_sum(rows), _find_eps(module)

    def describe(key: Any, result: Any, module: Any, *inputs: Any, **options: Any) -> Call | Unmapped:
        del result
        rows, *more = (*inputs, *options.values())
        kind = kinds.get(type(module))
        if kind is None:
            kind = kinds[type(module)] = "" if more else _recognise(module, original)
        return _describe_norm(module, rows, kind, is_fused=key[3])

    return Operator(name="norm", key=key, describe=describe)


def _find_eps(module: Any) -> float:
    """Read it from the instance: asking a module for an attribute that it has not got takes microseconds."""
    own = module.__dict__
    for name in _EPS:
        eps: float | None = own.get(name)
        if eps is not None:
            return eps
    return 0.0


def _recognise(module: Any, forward: Callable[..., Any]) -> str:
    """Try a row and see which formula gives the same; empty if none does."""
    import torch

    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 1:
        return ""
    row = torch.linspace(-1, 2, weight.numel(), device=weight.device, dtype=torch.float32)[None].to(weight.dtype)
    wide, scale = row.float(), weight.detach().float()
    plain = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + _find_eps(module))
    got = forward(module, row)
    if not isinstance(got, torch.Tensor) or got.shape != row.shape:
        return ""
    centred = wide - wide.mean(dim=-1, keepdim=True)
    shift = module.bias.detach().float() if getattr(module, "bias", None) is not None else 0.0
    centred = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + _find_eps(module))
    formulas = (
        ("rmsnorm", plain * scale),
        ("gemma_rmsnorm", plain * (1 + scale)),
        ("layernorm", centred * scale + shift),
    )
    for kind, wanted in formulas:
        if torch.allclose(got.float(), wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
            return kind
    return ""


def _describe_norm(module: Any, rows: torch.Tensor, kind: str, *, is_fused: bool) -> Call | Unmapped:
    if not kind:
        name = type(module).__name__
        kernel = "rmsnorm_gated" if "Gated" in name else "rmsnorm" if "RMS" in name else ""
        return Unmapped(
            what=name, kernel=kernel, reason="it computes none of x * w / rms, x * (1 + w) / rms and LayerNorm"
        )
    size = rows.shape[-1]
    parameters = {"hidden_size": size, "eps": float(_find_eps(module)), "dtype": name_dtype(rows.dtype)}
    if kind == "layernorm":
        parameters["bias"] = getattr(module, "bias", None) is not None
    kernel = _FUSED.get(kind, kind) if is_fused else kind
    return Call(
        kernel=kernel, parameters=parameters, axes={"batch_size": rows.numel() // size}, rows=tuple(rows.shape[:-1])
    )
