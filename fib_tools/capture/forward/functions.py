"""Torch's own functions: products, embeddings, activations, softmax, top-k, and the sums that norms are fused with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Watch

if TYPE_CHECKING:
    import torch

__all__ = ["name_dtype", "patch_activations", "patch_functions"]

_MIN_DIM = 2


def patch_functions(patches: Patches, watch: Watch) -> None:
    """Watch what modules and models call of torch."""
    import torch

    functional = torch.nn.functional
    patches.wrap(functional, "linear", lambda original: _watch_linear(watch, original))
    patches.wrap(functional, "embedding", lambda original: _watch_embedding(watch, original))
    for name in ("silu", "gelu"):
        patches.wrap(functional, name, partial(_watch_activation, watch, name))
    for owner in (functional, torch, torch.Tensor):
        patches.wrap(owner, "softmax", lambda original: _watch_softmax(watch, original))
    for owner in (torch, torch.Tensor):
        patches.wrap(owner, "topk", lambda original: _watch_topk(watch, original))
    for name in ("__add__", "__iadd__"):
        patches.wrap(torch.Tensor, name, lambda original: _watch_sum(watch, original))


def patch_activations(patches: Patches, watch: Watch, modules: Iterable[torch.nn.Module]) -> None:
    """Watch functions that modules took from torch when they were made: transformers' activations do."""
    import torch

    for module in modules:
        if vars(module).get("act") is torch._C._nn.gelu:  # noqa: SLF001  # torch.nn.functional.gelu, unwatched
            patches.wrap(module, "act", partial(_watch_activation, watch, "gelu"))


def name_dtype(dtype: torch.dtype) -> str:
    """Name an element type as Definitions do."""
    return str(dtype).removeprefix("torch.")


def _rows(tensor: torch.Tensor) -> int:
    """Count the rows along the last axis."""
    return tensor.numel() // max(1, tensor.shape[-1])


def _watch_linear(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:  # noqa: A002
        if watch.is_blind:
            return original(input, weight, bias)
        key = ("linear", input.shape, weight.shape, input.dtype, bias is None)
        return watch.call(key, lambda _: _describe_linear(input, weight, bias), original, input, weight, bias)

    return linear


def _describe_linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Call:
    n, k = weight.shape
    parameters = {"n": n, "k": k, "bias": bias is not None, "dtype": name_dtype(rows.dtype)}
    return Call(kernel="gemm", parameters=parameters, axes={"M": _rows(rows)})


def _watch_embedding(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    def embedding(input: torch.Tensor, weight: torch.Tensor, *more: Any, **options: Any) -> Any:  # noqa: A002
        if watch.is_blind:
            return original(input, weight, *more, **options)
        key = ("embedding", input.shape, weight.shape, weight.dtype)
        return watch.call(key, lambda _: _describe_embedding(input, weight), original, input, weight, *more, **options)

    return embedding


def _describe_embedding(ids: torch.Tensor, weight: torch.Tensor) -> Call:
    vocabulary, size = weight.shape
    parameters = {"vocab_size": vocabulary, "hidden_size": size, "dtype": name_dtype(weight.dtype)}
    return Call(kernel="embedding", parameters=parameters, axes={"num_tokens": ids.numel()})


def _watch_activation(watch: Watch, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def activation(input: torch.Tensor, *more: Any, **options: Any) -> Any:  # noqa: A002
        if watch.is_blind:
            return original(input, *more, **options)
        kernel = "gelu_tanh" if options.get("approximate") == "tanh" else name
        key = (kernel, input.shape, input.dtype)
        return watch.call(key, lambda _: _describe_activation(kernel, input), original, input, *more, **options)

    return activation


def _describe_activation(kernel: str, rows: torch.Tensor) -> Call:
    parameters = {"intermediate_size": rows.shape[-1], "dtype": name_dtype(rows.dtype)}
    return Call(kernel=kernel, parameters=parameters, axes={"num_tokens": _rows(rows)})


def _watch_softmax(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    def softmax(input: torch.Tensor, dim: Any = None, *more: Any, **options: Any) -> Any:  # noqa: A002
        if watch.is_blind:
            return original(input, dim, *more, **options)
        dtype = options.get("dtype") or input.dtype
        key = ("softmax", input.shape, dim, dtype)
        return watch.call(key, lambda _: _describe_softmax(input, dim, dtype), original, input, dim, *more, **options)

    return softmax


def _describe_softmax(scores: torch.Tensor, dim: Any, dtype: torch.dtype) -> Call | Unmapped:
    if not _is_last(scores, dim):
        return Unmapped(what="softmax", reason=f"it runs along axis {dim} of {list(scores.shape)}, not the last")
    parameters = {"dim": scores.shape[-1], "dtype": name_dtype(dtype)}
    return Call(kernel="softmax", parameters=parameters, axes={"length": _rows(scores)})


def _watch_topk(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    def topk(input: torch.Tensor, k: int, dim: int = -1, *more: Any, **options: Any) -> Any:  # noqa: A002
        if watch.is_blind:
            return original(input, k, dim, *more, **options)
        key = ("topk", input.shape, k, dim, input.dtype)
        return watch.call(key, lambda _: _describe_topk(input, k, dim), original, input, k, dim, *more, **options)

    return topk


def _describe_topk(rows: torch.Tensor, k: int, dim: int) -> Call | Unmapped:
    if not _is_last(rows, dim):
        return Unmapped(what="topk", reason=f"it runs along axis {dim} of {list(rows.shape)}, not the last")
    parameters = {"dim": rows.shape[-1], "k": int(k), "dtype": name_dtype(rows.dtype)}
    return Call(kernel="topk", parameters=parameters, axes={"length": _rows(rows)})


def _is_last(tensor: torch.Tensor, dim: Any) -> bool:
    return isinstance(dim, int) and dim % max(1, tensor.dim()) == tensor.dim() - 1


def _watch_sum(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    def add(self: torch.Tensor, other: Any) -> Any:
        total = original(self, other)
        if not watch.is_blind and getattr(other, "shape", None) == self.shape and self.dim() >= _MIN_DIM:
            watch.note_sum(total)
        return total

    return add
