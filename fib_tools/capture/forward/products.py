"""Products other than `linear`, convolutions, recurrent layers and torch's own norms: what takes time and has many names.

A product with a matrix of weights is the same kernel by any name. What has no kernel type, or is none by what it takes,
is counted too, so that what a run spends its time on is never passed over in silence.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.functions import name_dtype
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Operator, Watch, Widths

if TYPE_CHECKING:
    import torch

__all__ = ["patch_products"]

_PAIRS = ("matmul", "mm", "bmm")
_SUMS = ("addmm", "baddbmm")
_CONVOLUTIONS = tuple(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3))
_OTHERS = {
    "torch": ("einsum", "mv", "addmv", "addbmm", "_grouped_mm", "_scaled_mm", "_native_multi_head_attention"),
    "torch.nn.functional": ("bilinear", "group_norm", "batch_norm", "rms_norm", "grouped_mm", "scaled_mm"),
    "torch._VF": ("lstm", "gru", "rnn_tanh", "rnn_relu"),
}
"""Functions that are counted, and described by no kernel type as they are called."""
_KERNELS = {"rms_norm": "rmsnorm", "mv": "gemm", "addmv": "gemm"}
_MATRIX = 2
_STACK = 3


def patch_products(patches: Patches, watch: Watch) -> None:
    """Watch torch's functions and methods that multiply, convolve and normalise."""
    import torch

    functional = torch.nn.functional
    for name in _PAIRS:
        for owner in (torch, torch.Tensor):
            patches.wrap(owner, name, partial(watch.wrap, _make_product(watch.widths, name)))
    patches.wrap(torch.Tensor, "__matmul__", partial(watch.wrap, _make_product(watch.widths, "matmul")))
    for name in _SUMS:
        for owner in (torch, torch.Tensor):
            patches.wrap(owner, name, partial(watch.wrap, _make_sum(watch.widths, name)))
    for name in _CONVOLUTIONS:
        convolution = Operator(name=name, key=_key, describe=partial(_describe_convolution, watch.widths, name))
        for owner in (torch, functional):
            patches.wrap(owner, name, partial(watch.wrap, convolution))
    patches.wrap(functional, "layer_norm", partial(watch.wrap, _LAYER_NORM))
    for owner, names in zip((torch, functional, torch._VF), _OTHERS.values(), strict=True):  # noqa: SLF001  # its name
        for name in names:
            if hasattr(owner, name):  # torch has more of them from version to version
                patches.wrap(owner, name, partial(watch.wrap, _make_other(name)))


def _is_weight(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is a parameter, or one seen in another way, such as transposed."""
    from torch.nn import Parameter

    return type(tensor) is Parameter or type(tensor._base) is Parameter  # noqa: SLF001  # torch has no public name for it


class _Product(NamedTuple):
    """`[..., k]` times `[k, n]`, or each of a stack."""

    rows: tuple[int, ...]
    other: tuple[int, ...]
    dtype: torch.dtype
    is_weight: bool
    """Whether the second factor is one."""
    is_first: bool
    """Whether the first one is."""
    added: tuple[int, ...] | None = None
    is_plain: bool = True
    """Whether the product and what is added to it are taken as they are."""


def _make_product(widths: Widths, name: str) -> Operator:
    def key(input: torch.Tensor, other: Any = None, *more: Any, **options: Any) -> Hashable:  # noqa: A002
        del more
        second = options.get("mat2", other)
        return input.shape, second.shape, input.dtype, _is_weight(second), _is_weight(input)

    return Operator(name=name, key=key, describe=partial(_describe_product, widths, name))


def _make_sum(widths: Widths, name: str) -> Operator:
    def key(input: torch.Tensor, *more: Any, beta: Any = 1, alpha: Any = 1, **options: Any) -> Hashable:  # noqa: A002
        rows, other = (*more, *options.values())[:2]
        return (
            rows.shape,
            other.shape,
            rows.dtype,
            _is_weight(other),
            _is_weight(rows),
            input.shape,
            (beta, alpha) == (1, 1),
        )

    return Operator(name=name, key=key, describe=partial(_describe_product, widths, name))


def _describe_product(widths: Widths, name: str, key: Any, *_: Any, **__: Any) -> Call | Unmapped | None:
    """Find the weight; the product of a column and a row is only a scaling."""
    product = _Product(*key)
    rows, other = tuple(product.rows), tuple(product.other)
    k, n = other[-2:] if len(other) >= _MATRIX else (other[0], 1)
    if k == 1:
        return None
    sizes = {"n": n, "k": k, "dtype": name_dtype(product.dtype)}
    is_matrix = product.is_weight and len(other) == _MATRIX
    has_bias = product.added is not None
    reason = "the weight is no matrix" if product.is_weight else "neither factor is a weight"
    if product.is_first:
        reason = "the weight comes first, and tokens are columns"
    if not product.is_plain:
        reason = "it scales the product or what it adds"
    elif product.added is not None and tuple(product.added) != (n,):
        reason = f"it adds {list(product.added)}, which is no bias"
    elif is_matrix:
        widths.products.update((n, k))
        return Call(
            kernel="gemm",
            parameters={**sizes, "bias": has_bias},
            axes={"M": math.prod(rows[:-1])},
            rows=rows[:-1],
        )
    elif product.is_weight and not has_bias and len(other) == len(rows) == _STACK and other[0] == rows[0]:
        return Call(kernel="bmm", parameters={**sizes, "b": other[0]}, axes={"M": rows[1]})
    return Unmapped(
        what=name, kernel="gemm" if is_matrix or product.is_first else "", reason=reason, shapes=(rows, other)
    )


def _key(*inputs: Any, **options: Any) -> Hashable:
    """Tell calls apart by the shapes of what they take."""
    return tuple(each.shape if hasattr(each, "shape") else None for each in (*inputs, *options.values()))


def _describe_convolution(
    widths: Widths,
    name: str,
    key: Any,
    result: Any,
    input: torch.Tensor,  # noqa: A002
    weight: torch.Tensor,
    *more: Any,
    **options: Any,
) -> Unmapped:
    del key, more, options
    widths.channels.add(result.shape[1] if result.dim() > weight.dim() - 1 else result.shape[0])
    # each channel by itself, and what is before the first token is nothing: as Mamba and Gated DeltaNet have them
    is_causal = name == "conv1d" and weight.shape[1] == 1 and weight.shape[0] == input.shape[-2]
    kernel = ("causal_conv1d_prefill" if result.shape[-1] > 1 else "causal_conv1d_decode") if is_causal else ""
    reason = "it is not seen whether it is causal" if is_causal else "no kernel type is a convolution like this"
    return Unmapped(what=name, kernel=kernel, reason=reason)


def _key_layer_norm(
    input: torch.Tensor,  # noqa: A002
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    **options: Any,
) -> Hashable:
    del options
    return input.shape, input.dtype, tuple(normalized_shape), weight is not None, bias is not None, eps


def _describe_layer_norm(key: Any, *_: Any, **__: Any) -> Call | Unmapped:
    shape, dtype, normalised, has_weight, has_bias, eps = key
    if len(normalised) != 1 or not has_weight:
        reason = f"it runs over {list(normalised)}, not the last axis" if has_weight else "it has no weight"
        return Unmapped(what="layer_norm", kernel="layernorm", reason=reason)
    parameters = {"hidden_size": shape[-1], "eps": eps, "bias": has_bias, "dtype": name_dtype(dtype)}
    return Call(
        kernel="layernorm",
        parameters=parameters,
        axes={"batch_size": math.prod(shape[:-1])},
        rows=tuple(shape[:-1]),
    )


def _make_other(name: str) -> Operator:
    def describe(key: Any, result: Any, *inputs: Any, **options: Any) -> Unmapped:
        del key, result, options
        about = f" {inputs[0]!r}" if inputs and isinstance(inputs[0], str) else ""
        return Unmapped(what=name + about, kernel=_KERNELS.get(name, ""), reason="no kernel type is called like this")

    def key(*inputs: Any, **options: Any) -> Hashable:
        return _key(*inputs, **options), inputs[0] if inputs and isinstance(inputs[0], str) else ""

    return Operator(name=name, key=key, describe=describe)


_LAYER_NORM = Operator(name="layer_norm", key=_key_layer_norm, describe=_describe_layer_norm)
