"""Identity of kernels by signature: two Definitions can have one name and be two kernels, or two names and be one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fib_tools.gate.constants import find_constants
from fib_tools.gate.recognise import Recognised, recognise
from fib_tools.model.definition import Definition
from fib_tools.model.naming import cut_name
from fib_tools.model.tags import find_tag_values

__all__ = ["Signature", "Verdict", "build_index", "compare", "signature"]

_DTYPES = frozenset({"dtype", "state_dtype"})
"""Parameters that are element types: FlashInfer routes by everything but these."""

_FLAGS = frozenset(
    {
        "causal", "full", "sinks", "neox", "gptj", "nhd", "hnd", "inplace", "routing", "renorm", "renormalize", "ds",
        "llama4", "default", "naive", "k", "last", "interleave", "kvfp8", "swizzled", "linear",
    }
)  # fmt: skip
"""Words of names that make another kernel of the same API."""

_AXES: Mapping[str, str] = {
    "N": "n",
    "K": "k",
    "M": "m",
    "hidden": "hidden_size",
    "topk": "top_k",
    "kv_lora_rank": "head_dim_ckv",
    "qk_rope_head_dim": "head_dim_kpe",
    "num_k_heads": "num_q_heads",
}
"""Axis names that mean the same."""

_DERIVED_WORDS = (
    "_div_",
    "_blocks",
    "_packed",
    "packed_",
    "scale_",
    "_plus_",
    "gemm1_out",
    "one",
    "singleton",
    "scalar",
)
"""Words in names of const axes whose length follows from other axes."""

_PROGRAM = frozenset({"LOG2E", "LN2", "INV_LN2"})
"""Constants of nature: no parameter of a kernel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What makes a kernel the kernel it is, dtypes left out."""

    kernel: str
    """The id of a kernel type of ours, or `op_type:stem` of a foreign one."""
    parameters: tuple[tuple[str, Any], ...]
    """Const axes, variant flags and baked constants, by name."""

    def __str__(self) -> str:
        return f"{self.kernel}({', '.join(f'{name}={value}' for name, value in self.parameters)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How two Definitions relate."""

    same_kernel: bool
    same_interface: bool
    """A Solution of one takes the calls of the other as they are: same inputs and outputs in the same order."""
    differences: tuple[str, ...] = ()


def signature(definition: Definition) -> Signature:
    """Derive a Definition's signature."""
    found = recognise(definition)
    return _of_kernel_type(found) if found is not None else _of_foreign(definition)


def _of_kernel_type(found: Recognised) -> Signature:
    kept = {name: value for name, value in found.parameters.items() if name not in _DTYPES and value is not None}
    return Signature(kernel=found.kernel, parameters=tuple(sorted(kept.items())))


def _of_foreign(definition: Definition) -> Signature:
    apis = find_tag_values(definition.tags, "fi_api")
    words = [part.word for part in cut_name(definition.name).parts if part.number is None]
    stem = apis[0].rpartition(".")[2] if apis and not apis[0].endswith((".run", ".forward")) else "_".join(words)
    parameters: dict[str, Any] = {
        _AXES.get(axis, axis): value
        for axis, value in definition.const_axes.items()
        if not any(word in axis for word in _DERIVED_WORDS)
    }
    parameters |= {word: True for word in words if word in _FLAGS}
    constants = find_constants(definition.reference)
    parameters |= {name.lower(): value for name, value in constants.items() if name not in _PROGRAM}
    return Signature(kernel=f"{definition.op_type}:{stem}", parameters=tuple(sorted(parameters.items(), key=str)))


def compare(first: Definition, second: Definition) -> Verdict:
    """Judge whether two Definitions are one kernel, and whether they are called alike."""
    left, right = signature(first), signature(second)
    differences = []
    if left.kernel != right.kernel:
        differences.append(f"kernel {left.kernel} and {right.kernel}")
    ours, theirs = dict(left.parameters), dict(right.parameters)
    differences += [
        f"{name} {ours.get(name)!r} and {theirs.get(name)!r}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    same_kernel = left == right
    interface = list(_interface_differences(first, second)) if same_kernel else []
    return Verdict(
        same_kernel=same_kernel,
        same_interface=same_kernel and not interface,
        differences=(*differences, *interface),
    )


def _interface_differences(first: Definition, second: Definition) -> Iterable[str]:
    for what in ("inputs", "outputs"):
        left, right = getattr(first, what), getattr(second, what)
        if list(left) != list(right):
            yield f"{what} {', '.join(left)} and {', '.join(right)}"
            continue
        for name, spec in left.items():
            if _lengths(first, spec.shape) != _lengths(second, right[name].shape):
                yield f"{name} has the shapes {spec.shape} and {right[name].shape}"
            elif spec.dtype is not right[name].dtype:
                yield f"{name} has the dtypes {spec.dtype.value} and {right[name].dtype.value}"


def _lengths(definition: Definition, shape: list[str] | None) -> list[int | None] | None:
    """A shape without its axes' names: const lengths, and None for var ones."""
    return None if shape is None else [definition.const_axes.get(axis) for axis in shape]


def build_index(
    definitions: Collection[Definition], report: Callable[[int, int], None] = lambda _done, _total: None
) -> dict[Signature, str]:
    """Index a dataset by signature; of two Definitions of one kernel the first counts."""
    index: dict[Signature, str] = {}
    for done, definition in enumerate(definitions):
        report(done, len(definitions))
        index.setdefault(signature(definition), definition.name)
    return index
