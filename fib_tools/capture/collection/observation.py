"""What a call gave a kernel, under the names that Definitions have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fib_tools.capture.collection.dumps import Call, TensorFacts, read_integers
from fib_tools.errors import FormatError

if TYPE_CHECKING:
    import torch

__all__ = ["Observation", "Plan", "Seen", "list_numbers", "observe_function", "read_plan", "see_all", "see_paged"]

_INTEGERS = frozenset({"int64", "int32", "int16", "bool"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A tensor of a call."""

    shape: tuple[int, ...]
    dtype: str
    source: TensorFacts | None = None
    """Where its values are."""
    values: torch.Tensor | None = None
    """Of structure: integers and booleans."""
    problem: str = ""
    """Why there are no values."""
    is_paged: bool = False
    """Its rows are pages, of which most may never have been written."""
    is_kept: bool = False
    """Its values are kept though they are numbers, since what is computed follows from them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One call, as a Definition of the same kernel would be given it."""

    call: Call
    tensors: Mapping[str, Seen] = field(default_factory=dict)
    scalars: Mapping[str, float | int | bool] = field(default_factory=dict)
    """Numbers that the caller gave."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the kernel that the call fixes."""
    hidden: frozenset[str] = frozenset()
    """Parameters that it may have and the dump cannot show."""
    notes: tuple[str, ...] = ()
    experts: torch.Tensor | None = None
    """Of each token, where it is sent to experts."""
    is_made_up: bool = False
    """Something of it is not what the engine did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A plan() and its tensors, read once for all the layers that run with it."""

    call: Call
    tensors: Mapping[str, Seen]


def _see(value: TensorFacts) -> Seen:
    if value.dtype not in _INTEGERS:
        return Seen(shape=value.shape, dtype=value.dtype, source=value)
    try:
        return Seen(shape=value.shape, dtype=value.dtype, source=value, values=read_integers(value))
    except FormatError as error:
        return Seen(shape=value.shape, dtype=value.dtype, source=value, problem=error.what)


def see_all(call: Call) -> dict[str, Seen]:
    """Read the tensors of a call; of integers and booleans with their values."""
    return {name: _see(value) for name, value in call.arguments.items() if isinstance(value, TensorFacts)}


def list_numbers(call: Call) -> dict[str, float | int | bool]:
    """List the numbers that the caller gave."""
    return {name: value for name, value in call.arguments.items() if isinstance(value, (bool, int, float))}


_FUNCTION_NAMES: Mapping[str, str] = {
    "input": "hidden_states",
    "query": "q",
    "key": "k",
    "a": "A",
    "b": "B",
    "a_scale": "A_scale",
    "b_scale": "B_scale",
}
"""What Definitions call the arguments of plain functions, where they call them otherwise."""


def observe_function(call: Call) -> Observation:
    """Read a call that stands for itself."""
    tensors = see_all(call)
    cache = call.arguments.get("paged_kv_cache")
    if isinstance(cache, tuple) and len(cache) == 2 and all(isinstance(item, TensorFacts) for item in cache):
        tensors |= {"k_cache": see_paged(cache[0]), "v_cache": see_paged(cache[1])}
    tensors |= {new: tensors[old] for old, new in _FUNCTION_NAMES.items() if old in tensors and new not in tensors}
    plain = {**call.defaults, **call.arguments}
    facts = {name: value for name, value in plain.items() if isinstance(value, (bool, int, float, str))}
    return Observation(call=call, tensors=tensors, scalars=list_numbers(call), facts=facts)


def see_paged(cache: TensorFacts, shape: tuple[int, ...] | None = None) -> Seen:
    """Read a cache; `shape` is what its pages mean, where the engine says it otherwise."""
    return Seen(shape=shape or cache.shape, dtype=cache.dtype, source=cache, is_paged=True)


_PLAN_NAMES: Mapping[str, str] = {
    "indptr": "kv_indptr",
    "indices": "kv_indices",
    "last_page_len": "kv_last_page_len",
    "paged_kv_indptr": "kv_indptr",
    "paged_kv_indices": "kv_indices",
    "paged_kv_last_page_len": "kv_last_page_len",
}


def read_plan(call: Call) -> Plan:
    """Read the tensors of a plan(), the page table without what is allocated beyond its indptr.

    Raises:
        FormatError: an indptr is none, or a page table is shorter than it says.
    """
    tensors = {_PLAN_NAMES.get(name, name): seen for name, seen in see_all(call).items()}
    for name in ("qo_indptr", "kv_indptr"):
        if name in tensors:
            _check_offsets(name, tensors[name], call)
    offsets, pages = tensors.get("kv_indptr"), tensors.get("kv_indices")
    if offsets is not None and pages is not None and offsets.values is not None and pages.values is not None:
        total = int(offsets.values[-1])
        if total > pages.shape[0]:
            raise FormatError(f"kv_indptr ends at {total}, kv_indices has {pages.shape[0]}", where=call.folder.name)
        tensors["kv_indices"] = Seen(shape=(total,), dtype=pages.dtype, values=pages.values[:total].clone())
    return Plan(call=call, tensors=tensors)


def _check_offsets(name: str, seen: Seen, call: Call) -> None:
    if seen.values is None:
        return
    values = seen.values
    if values.dim() != 1 or not len(values) or int(values[0]) or bool((values.diff() < 0).any()):
        raise FormatError(f"{name} is no indptr: it begins at 0 and never falls", where=call.folder.name)
