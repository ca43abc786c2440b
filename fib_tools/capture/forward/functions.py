"""Torch's own functions: products, embeddings, activations, softmax, top-k, and the sums that norms are fused with."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Described, Operator, Watch, Widths

if TYPE_CHECKING:
    import torch

__all__ = [
    "count_rows",
    "list_settings",
    "name_dtype",
    "patch_activations",
    "patch_choices",
    "patch_functions",
    "tell_shapes",
]

_TURNED_DIMS = 3
"""Of `[batch, channels, time]`."""
_BY_HAND = {"FastGELUActivation": "gelu_tanh", "NewGELUActivation": "gelu_tanh", "ReLUSquaredActivation": "relu2"}
"""transformers' activations that are written out in elementwise operations."""


def patch_functions(patches: Patches, watch: Watch) -> None:
    """Watch what modules and models call of torch."""
    import torch

    functional = torch.nn.functional
    linear = Operator(name="linear", key=_key_linear, describe=partial(_describe_linear, watch.widths))
    patches.wrap(functional, "linear", partial(watch.wrap, linear))
    patches.wrap(functional, "embedding", partial(watch.wrap, _EMBEDDING))
    for name in ("silu", "gelu"):
        patches.wrap(functional, name, partial(watch.wrap, _make_activation(watch, name)))
    for name in ("__add__", "__iadd__"):
        patches.wrap(torch.Tensor, name, watch.wrap_sum)


def patch_choices(patches: Patches, watch: Watch) -> None:
    """Watch what turns scores into probabilities and finds the largest."""
    import torch

    for owner in (torch.nn.functional, torch, torch.Tensor):
        patches.wrap(owner, "softmax", partial(watch.wrap, _SOFTMAX))
    for owner in (torch, torch.Tensor):
        patches.wrap(owner, "topk", partial(watch.wrap, _TOPK))


def patch_activations(patches: Patches, watch: Watch, modules: Iterable[torch.nn.Module]) -> None:
    """Watch functions that modules took from torch when they were made: transformers' activations do."""
    for module in modules:
        for attribute, value in [*vars(module).items()]:
            if callable(value):
                _patch_taken(patches, module, attribute, value)
        name = _BY_HAND.get(type(module).__name__)
        if name is not None:
            patches.wrap(module, "forward", partial(watch.wrap, _make_activation(watch, name)))


def _patch_taken(patches: Patches, module: torch.nn.Module, attribute: str, taken: Any) -> None:
    """Have a module call what is watched instead of the function that it holds, or of which it holds some arguments."""
    watched = patches.find_replacement(taken.func if isinstance(taken, partial) else taken)
    if watched is not None:
        own = partial(watched, *taken.args, **taken.keywords) if isinstance(taken, partial) else watched
        patches.wrap(module, attribute, lambda _: own)


def name_dtype(dtype: torch.dtype) -> str:
    """Name an element type as Definitions do."""
    return str(dtype).removeprefix("torch.")


def count_rows(tensor: torch.Tensor) -> int:
    """Count the rows along the last axis."""
    return tensor.numel() // max(1, tensor.shape[-1])


def list_settings(module: torch.nn.Module) -> tuple[tuple[str, Hashable], ...]:
    """List a module's own numbers and words: what sets it apart from others of its class, but for its weights."""
    return tuple((name, value) for name, value in vars(module).items() if isinstance(value, (bool, int, float, str)))


def tell_shapes(*inputs: Any, **options: Any) -> Hashable:
    """Tell calls apart by the shapes of the tensors they take."""
    return tuple(each.shape for each in (*inputs, *options.values()) if hasattr(each, "untyped_storage"))


def _key_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Hashable:  # noqa: A002
    return input.shape, weight.shape, input.dtype, bias is None


def _describe_linear(
    widths: Widths,
    key: Any,
    result: Any,
    input: torch.Tensor,  # noqa: A002
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> Call:
    del key, result
    n, k = weight.shape
    widths.products.update((n, k))
    parameters = {"n": n, "k": k, "bias": bias is not None, "dtype": name_dtype(input.dtype)}
    return Call(kernel="gemm", parameters=parameters, axes={"M": count_rows(input)}, rows=tuple(input.shape[:-1]))


def _key_embedding(input: torch.Tensor, weight: torch.Tensor, *more: Any, **options: Any) -> Hashable:  # noqa: A002
    del more, options
    return input.shape, weight.shape, weight.dtype


def _describe_embedding(
    key: Any,
    result: Any,
    input: torch.Tensor,  # noqa: A002
    weight: torch.Tensor,
    *more: Any,
    **options: Any,
) -> Call:
    del key, result, more, options
    vocabulary, size = weight.shape
    parameters = {"vocab_size": vocabulary, "hidden_size": size, "dtype": name_dtype(weight.dtype)}
    return Call(kernel="embedding", parameters=parameters, axes={"num_tokens": input.numel()}, rows=tuple(input.shape))


def _key_activation(input: torch.Tensor, *more: Any, **options: Any) -> Hashable:  # noqa: A002
    del more
    return input.shape, input.dtype, options.get("approximate")


def _make_activation(watch: Watch, name: str) -> Operator:
    return Operator(name=name, key=_key_activation, describe=partial(_describe_activation, watch.widths, name))


def _describe_activation(
    widths: Widths,
    name: str,
    key: Any,
    result: Any,
    input: torch.Tensor,  # noqa: A002
    *more: Any,
    approximate: str = "none",
    **options: Any,
) -> Described:
    del key, result, more, options
    kernel = "gelu_tanh" if approximate == "tanh" else name
    parameters = {"intermediate_size": input.shape[-1], "dtype": name_dtype(input.dtype)}
    rows = tuple(input.shape[:-1])
    call = Call(kernel=kernel, parameters=parameters, axes={"num_tokens": count_rows(input)}, rows=rows)
    return partial(_check_activation, widths, call, tuple(input.shape))


def _check_activation(widths: Widths, call: Call, shape: tuple[int, ...]) -> Call | Unmapped:
    """Take the last axis for a size only if projections have it: behind a convolution it may be one of time."""
    size = shape[-1]
    is_size = size in widths.products or 2 * size in widths.products  # gate and up may be one product
    is_turned = len(shape) == _TURNED_DIMS and shape[1] in widths.channels and size not in widths.channels
    if is_size and not is_turned:
        return call
    reason = f"the last axis of {list(shape)} is not the hidden size of a projection"
    return Unmapped(what=call.kernel, kernel=call.kernel, reason=reason, shapes=(shape,))


def _key_softmax(input: torch.Tensor, dim: Any = None, *more: Any, **options: Any) -> Hashable:  # noqa: A002
    del more
    return input.shape, dim, options.get("dtype") or input.dtype


def _describe_softmax(
    key: Any,
    result: Any,
    input: torch.Tensor,  # noqa: A002
    dim: Any = None,
    *more: Any,
    **options: Any,
) -> Call | Unmapped:
    del result, more, options
    if not _is_last(input, dim):
        return Unmapped(what="softmax", reason=f"it runs along axis {dim} of {list(input.shape)}, not the last")
    parameters = {"dim": input.shape[-1], "dtype": name_dtype(key[-1])}
    return Call(
        kernel="softmax", parameters=parameters, axes={"length": count_rows(input)}, rows=tuple(input.shape[:-1])
    )


def _key_topk(input: torch.Tensor, k: int, dim: int = -1, *more: Any, **options: Any) -> Hashable:  # noqa: A002
    del more, options
    return input.shape, k, dim, input.dtype


def _describe_topk(
    key: Any,
    result: Any,
    input: torch.Tensor,  # noqa: A002
    k: int,
    dim: int = -1,
    *more: Any,
    **options: Any,
) -> Call | Unmapped:
    del key, result, more, options
    if not _is_last(input, dim):
        return Unmapped(what="topk", reason=f"it runs along axis {dim} of {list(input.shape)}, not the last")
    parameters = {"dim": input.shape[-1], "k": int(k), "dtype": name_dtype(input.dtype)}
    return Call(kernel="topk", parameters=parameters, axes={"length": count_rows(input)}, rows=tuple(input.shape[:-1]))


def _is_last(tensor: torch.Tensor, dim: Any) -> bool:
    return isinstance(dim, int) and dim % max(1, tensor.dim()) == tensor.dim() - 1


_EMBEDDING = Operator(name="embedding", key=_key_embedding, describe=_describe_embedding)
_SOFTMAX = Operator(name="softmax", key=_key_softmax, describe=_describe_softmax)
_TOPK = Operator(name="topk", key=_key_topk, describe=_describe_topk)
