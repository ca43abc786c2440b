"""Learning what a function computes by running it on a few numbers on the CPU."""

from __future__ import annotations

import contextlib
import copy
from types import CellType, FunctionType
from typing import Any, NamedTuple

__all__ = ["NormProbe", "probe_mask", "probe_norm", "probe_rope"]

_FAR = 1 << 18
"""A position beyond every window in use; positions are probed one by one, so its size costs nothing."""


class NormProbe(NamedTuple):
    """What a norm turned out to be."""

    kind: str
    """rmsnorm, gemma_rmsnorm, layernorm, rmsnorm_noweight, rmsnorm_gated, or unknown."""
    eps: float | None
    has_bias: bool = False
    gate_first: bool | None = None
    """For gated norms: the gate is applied before the norm."""
    group_size: int | None = None


def probe_norm(module: Any, *, size: int, inputs: int) -> NormProbe:
    """Tell which norm a module is, from its outputs for chosen weights and inputs; `unknown` where it cannot be asked."""
    try:
        return _ask_norm(module, size=size, inputs=inputs)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return NormProbe("unknown", None)


def _ask_norm(module: Any, *, size: int, inputs: int) -> NormProbe:
    import torch

    twin = _make_twin(module)
    names = [name for name, value in twin._parameters.items() if value is not None]  # noqa: SLF001  # own parameters only
    weight = next((getattr(twin, name) for name in names if name != "bias"), None)
    has_bias = "bias" in names
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, 1, size), generator=generator) + 0.5
    extra = [torch.randn((1, 1, size), generator=generator) for _ in range(inputs - 1)]
    with torch.no_grad():
        _set_weights(twin, names, 0.0)
        at_zero = twin(x, *extra)
        is_gemma = weight is not None and bool(at_zero.abs().max() > 0)
        _set_weights(twin, names, 0.0 if is_gemma else 1.0)
        if inputs > 1:
            return _probe_gated(twin, x, extra, has_bias=has_bias)
        eps = _probe_eps(twin, x)
        shifted = twin(x + 3.0)
        is_centred = torch.allclose(shifted, twin(x), atol=1e-3)
        kind = "layernorm" if is_centred else "rmsnorm_noweight" if weight is None else "rmsnorm"
        if is_gemma:
            kind = "gemma_rmsnorm"
        return NormProbe(kind if _is_norm(twin, x) else "unknown", eps, has_bias)


def _make_twin(module: Any) -> Any:
    import torch

    kept = module.__dict__.pop("forward", None)
    try:
        twin = copy.deepcopy(module)
    finally:
        if kept is not None:
            module.forward = kept
    twin = twin.to_empty(device="cpu").to(torch.float32)
    twin._forward_hooks.clear()  # noqa: SLF001  # the twin must not be recorded
    return twin


def _set_weights(module: Any, names: list[str], value: float) -> None:
    for name in names:
        getattr(module, name).data.fill_(0.0 if name == "bias" else value)


def _is_norm(module: Any, x: Any) -> bool:
    import torch

    return bool(torch.allclose(module(x * 4096.0), module(x * 8192.0), rtol=1e-3, atol=1e-3))


def _probe_eps(module: Any, x: Any) -> float | None:
    """Solve out = x / sqrt(mean(x^2) + eps) for eps, at inputs so small that eps rules."""
    import torch

    small = (x - x.mean()) * 1e-6
    out = module(small.to(torch.float32))
    peak = int(small.abs().argmax())
    top, bottom = float(small.flatten()[peak]), float(out.flatten()[peak])
    if bottom == 0.0:
        return None
    eps = (top / bottom) ** 2 - float(small.double().pow(2).mean())
    return float(f"{eps:.2g}") if eps > 0 else None


def _probe_gated(module: Any, x: Any, extra: list[Any], *, has_bias: bool) -> NormProbe:
    import torch

    silu = torch.nn.functional.silu
    size, eps = x.shape[-1], _probe_eps_gated(module, x, extra[0])
    for group in _group_candidates(module, size):

        def norm(value: Any, group: int = group) -> Any:
            parts = value.reshape(-1, group)
            return (parts * torch.rsqrt(parts.pow(2).mean(-1, keepdim=True) + 1e-6)).reshape(value.shape)

        for gate in (silu, torch.sigmoid):
            for gate_first in (True, False):
                expected = norm(x * gate(extra[0])) if gate_first else norm(x) * gate(extra[0])
                if torch.allclose(module(x, *extra), expected, rtol=1e-2, atol=1e-3):
                    return NormProbe("rmsnorm_gated", eps, has_bias, gate_first, group)
    return NormProbe("unknown", eps, has_bias)


def _group_candidates(module: Any, size: int) -> list[int]:
    given = getattr(module, "group_size", None)
    return [size, *([given] if isinstance(given, int) and 0 < given < size else [])]


def _probe_eps_gated(module: Any, x: Any, gate: Any) -> float | None:
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return _probe_eps(lambda small: module(small, gate), x)


def probe_mask(mask_function: Any, local_size: int | None) -> dict[str, Any]:
    """Learn causality, window and chunk of a mask by asking it about single positions.

    The answer has `causal`, `window` (tokens seen, the query's own included) and `chunk`; an empty one is unknown.
    """
    import torch

    asked = _on_cpu(mask_function)

    def sees(query: int, key: int) -> bool:
        return bool(asked(*(torch.tensor(value) for value in (0, 0, query, key))))

    try:
        causal = not sees(_FAR, _FAR + 1)
        first = _first_seen(sees, _FAR + 1)
        second = _first_seen(sees, _FAR + 2)
    except (RuntimeError, TypeError, NotImplementedError, IndexError):
        # A mask that looks into tensors of the model cannot be asked; its local size is all there is.
        return {"causal": True, "local_size": local_size}
    window = _FAR + 2 - first if second == first + 1 else None
    chunk = local_size if first > 0 and second == first else None
    return {"causal": causal, "window": window, "chunk": chunk}


def _on_cpu(value: Any) -> Any:
    """Copy a function whose closure holds tensors of the meta device, such as paddings, with zeros in their place."""
    import torch

    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape, dtype=value.dtype) if value.is_meta else value
    if isinstance(value, tuple):
        return tuple(_on_cpu(item) for item in value)
    if not isinstance(value, FunctionType) or not value.__closure__:
        return value
    cells = tuple(CellType(_on_cpu(cell.cell_contents)) for cell in value.__closure__)
    return FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)


def _first_seen(sees: Any, query: int) -> int:
    """Find the first key a query sees; what it sees is one run that ends at itself."""
    low, high = 0, query
    while low < high:
        middle = (low + high) // 2
        if sees(query, middle):
            high = middle
        else:
            low = middle + 1
    return low


def probe_rope(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Learn rotary width and style by changing one input value at a time.

    Two inputs of a pair change the same two outputs: neighbours in GPT-J's style, half the width apart in NeoX's.
    """
    import torch

    heads = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim() >= 3]
    shape = heads[0].shape if heads else ()
    attributes: dict[str, Any] = {
        "head_dim": int(shape[-1]) if shape else None,
        "_shapes": [tuple(value.shape) for value in heads[:2]],
    }
    pairs = _try_sizes(function, args, kwargs)
    turned = [index for index, partners in pairs.items() if partners]
    if turned:
        first = turned[0]
        distance = min(pairs[first]) - first
        attributes |= {"rotary_dim": len(turned), "is_neox": distance != 1 or len(turned) == 2, "offset": first}
    return attributes


def _try_sizes(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, set[int]]:
    """Probe one token of one head; where the function wants more (mrope's three positions), at the real size."""
    import torch

    for is_small in (True, False):
        generator = torch.Generator().manual_seed(0)
        test_args = tuple(_fill(value, generator, is_small=is_small) for value in args)
        test_kwargs = {name: _fill(value, generator, is_small=is_small) for name, value in kwargs.items()}
        with contextlib.suppress(RuntimeError, TypeError, IndexError, ValueError):
            return _find_pairs(function, test_args, test_kwargs)
    return {}


def _fill(value: Any, generator: Any, *, is_small: bool) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        shape = (*(1 for _ in value.shape[:-1]), value.shape[-1]) if is_small else tuple(value.shape)
        if value.is_complex():
            return torch.randn(shape, dtype=torch.complex64, generator=generator)
        if value.is_floating_point():
            return torch.randn(shape, generator=generator)
        return torch.zeros(shape, dtype=value.dtype)
    if isinstance(value, (tuple, list)):
        return type(value)(_fill(item, generator, is_small=is_small) for item in value)
    return value


def _find_pairs(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, set[int]]:
    import torch

    def run(values: tuple[Any, ...]) -> Any:
        result = function(*values, **kwargs)
        first = result[0] if isinstance(result, (tuple, list)) else result
        return first.reshape(-1, first.shape[-1])[0]

    base = run(args)
    width = args[0].shape[-1]
    touched: dict[int, frozenset[int]] = {}
    for index in range(width):
        changed = args[0].clone()
        changed.reshape(-1, width)[0, index] += 1.0
        delta = (run((changed, *args[1:])) - base).abs()
        touched[index] = frozenset(torch.nonzero(delta > 1e-6).flatten().tolist())
    return {
        index: {
            other
            for other in touched
            if other != index and len(touched[index]) > 1 and touched[other] == touched[index]
        }
        for index in touched
    }
