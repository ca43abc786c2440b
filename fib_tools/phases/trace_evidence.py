"""Which call outside of FlashInfer's traces computes a kernel of the inventory, in the same sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fib_tools.capture.evidence import OtherCall
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import ManifestKernel
from fib_tools.op_types.registry import find_kernel_type, get_kernel_type

__all__ = ["find_evidence"]

_WEIGHTS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("gemm", "torch.linear"): ("n", "k"),
    ("gemm", "torch.matmul"): ("k", "n"),
    ("bmm", "torch.bmm"): ("b", "k", "n"),
    ("embedding", "torch.embedding"): ("vocab_size", "hidden_size"),
}
"""Which of torch's functions computes a kernel, and what its weight's lengths are."""
_FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "fp8_quantize_1x128": ("per_token_group_quant",),
    "gemm": ("dsv3_router_gemm",),
    "rmsnorm": ("fused_inplace_qknorm",),
    "softmax_sampling": ("softmax",),
}
"""What computes a kernel type beside the functions that it names itself, such as two norms at once."""
_MATRIX = 2


def find_evidence(kernel: ManifestKernel, others: Sequence[OtherCall]) -> OtherCall | None:
    """Find a call that computes this kernel."""
    functions = _list_functions(kernel)
    widest: tuple[tuple[int | None, ...], ...] | None = None
    for call in others:
        order = _WEIGHTS.get((kernel.kernel, call.kernel))
        if order is not None:
            lengths = [kernel.parameters.get(name) for name in order]
            if lengths == list(call.weight) and bool(kernel.parameters.get("bias")) == call.bias:
                return call
        elif not call.weight and call.kernel.rpartition(".")[2] in functions:
            widest = _list_widest(kernel) if widest is None else widest
            if any(_has_shape(shape, call) for shape in widest):
                return call
    return None


def _list_functions(kernel: ManifestKernel) -> frozenset[str]:
    kernel_type = find_kernel_type(kernel.kernel)
    symbols = kernel_type.sglang_symbols if kernel_type else ()
    return frozenset({*(symbol.rpartition(".")[2] for symbol in symbols), *_FUNCTIONS.get(kernel.kernel, ())})


def _list_widest(kernel: ManifestKernel) -> tuple[tuple[int | None, ...], ...]:
    """List the inputs that tell most of the sizes, as lengths; None stands for a var axis."""
    definition = get_kernel_type(kernel.kernel).build(kernel.parameters)
    shapes = {_read_shape(definition, name) for name in definition.inputs}
    weights = {shape: _weigh(shape) for shape in shapes if shape and shape[-1] is not None}
    return tuple(shape for shape, weight in weights.items() if weight == max(weights.values()))


def _read_shape(definition: Definition, name: str) -> tuple[int | None, ...]:
    return tuple(definition.const_axes.get(axis) for axis in definition.inputs[name].shape or ())


def _weigh(shape: tuple[int | None, ...]) -> tuple[int, int]:
    known = [length for length in shape if length is not None]
    return len(known), math.prod(known)


def _has_shape(shape: tuple[int | None, ...], call: OtherCall) -> bool:
    return any(_fits(shape, _read_lengths(text)) for text in call.tensors.values())


def _read_lengths(text: str) -> list[int | None]:
    """Read the lengths of `bfloat16[*, 16384]`."""
    inside = text.partition("[")[2].rstrip("]")
    return [int(part) if part.strip().isdigit() else None for part in inside.split(",") if part.strip()]


def _fits(shape: tuple[int | None, ...], lengths: Sequence[int | None]) -> bool:
    """Compare an input with a tensor of the call, of which the first length is known for weights only.

    A matrix of weights must be known whole; of a stack of them the first length counts experts, to which SGLang may
    add the shared ones.
    """
    known = len(shape) if None not in shape else len(shape) - 1 - max(i for i, item in enumerate(shape) if item is None)
    if known == len(shape) > _MATRIX:
        return len(lengths) == len(shape) and tuple(lengths[1:]) == shape[1:]
    return len(lengths) >= known and tuple(lengths[len(lengths) - known :]) == shape[len(shape) - known :]
