"""The naming rule: a name is what the kernel is called, then a key and a number for each const axis.

`gqa_paged_decode_h32_kv8_d128_ps1`: words that say the op_type, then `num_qo_heads` 32, `num_kv_heads` 8, ...
An axis whose length follows from one in the name (twice it, a block of it) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from fib_tools.errors import PathError
from fib_tools.gate.constants import find_constants
from fib_tools.model.naming import NamePart, cut_name, format_name, parse_name
from fib_tools.op_types.registry import find_op_type

__all__ = ["AXIS_KEYS", "NAMING_RULE", "Naming", "find_name_faults", "suggest_name"]

AXIS_KEYS: Mapping[str, str] = {
    "hidden_size": "h", "num_qo_heads": "h", "num_heads": "h", "num_q_heads": "qk", "num_k_heads": "qk",
    "num_v_heads": "v", "num_kv_heads": "kv", "head_dim": "d", "head_size": "d", "head_dim_qk": "qk",
    "head_dim_vo": "vo", "head_dim_ckv": "ckv", "head_dim_kpe": "kpe", "rotary_dim": "rd", "page_size": "ps",
    "intermediate_size": "i", "num_experts": "e", "num_local_experts": "e", "top_k": "topk", "topk": "topk",
    "n_group": "ng", "topk_group": "kg", "vocab_size": "v", "channels": "c", "width": "w", "window": "win",
    "chunk_size": "chunk", "block_size": "bs", "group_size": "g", "N": "n", "K": "k", "M": "m",
}  # fmt: skip
"""The key of an axis in names; of another axis, the first letters of its words."""

NAMING_RULE = (
    "words that say the op_type, then one <key><number> for each const axis in declared order, joined by _ "
    "(gqa_paged_decode_h32_kv8_d128_ps1); an axis that follows from one in the name (2x, a block of it) is left out; "
    "every number in the name is a const axis or a constant of the reference"
)

_FORMATS = frozenset(
    {"fp", "bf", "int", "uint", "nvfp", "mxfp", "mxint", "float", "kvfp", "sm", "llama", "relu", "dsv"}
)
"""Letters before numbers that are the name of a format, a version or a function."""
_SHARED_OUT = frozenset({"num_experts"})
"""Axes of which a GPU holds a share that the name says instead."""
_FACTORS = (2, 3, 4, 8, 16, 32, 64, 128)
"""How many of one thing make one of another: two halves of a gate, values in a block."""
_NEAR = 4
"""A convolution's state is one shorter than its window, a page's row of FP8 has four bytes more for a scale."""
_UNFIT = re.compile(r"[^A-Za-z0-9_.+-]|\.\.+")
_LEAST_VOCABULARY = 10
"""A smaller number after `v` is a version."""
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """What the rule is about; a document that is no Definition yet may have it."""

    name: str
    op_type: str
    const_axes: Mapping[str, int]
    reference: str


def find_name_faults(naming: Naming) -> Iterator[tuple[str, str]]:
    """Say what is wrong with a name, as what was found and what is expected."""
    try:
        name = parse_name(naming.name)
    except PathError as error:
        yield naming.name[:80], str(error.todo)
        return
    if not _says_op_type(naming.name, naming.op_type):
        yield naming.name, f"a name that begins with the op_type: {naming.op_type}_..."
    known = {*naming.const_axes.values(), *_constants(naming)}
    named = {size for part in name.parts if (size := _size(part, known)) is not None}
    for part in name.parts:
        if _size(part, known) not in {None, *known}:
            sizes = ", ".join(f"{axis}={value}" for axis, value in naming.const_axes.items()) or "no const axis"
            yield str(part), f"a number that the Definition has ({sizes})"
    for axis, value in naming.const_axes.items():
        if not _is_said(axis, value, named):
            yield naming.name, f"a part for the const axis {axis} = {value}, such as {_key(axis)}{value}"


def suggest_name(naming: Naming) -> str:
    """Correct a name as far as the rule tells: wrong numbers are replaced or dropped, missing ones come last."""
    axes = naming.const_axes
    known = {*axes.values(), *_constants(naming)}
    right: dict[str, int] = {}
    for axis, value in axes.items():
        right.setdefault(_key(axis), value)
    words = _UNFIT.sub("_", naming.name)
    pieces: list[str] = [] if _says_op_type(words, naming.op_type) else [naming.op_type]
    named: set[int] = set()
    for part in cut_name(words).parts:
        size = _size(part, known)
        if size is None:
            pieces.append(str(part))
            continue
        number = size if size in known else right.get(part.word)
        if number is not None:
            pieces.append(f"{part.word}{number}")
            named.add(number)
    for axis, value in axes.items():
        if not _is_said(axis, value, named):
            pieces.append(f"{_key(axis)}{value}")
            named.add(value)
    try:
        return format_name(*filter(None, pieces))
    except PathError:
        return ""


def _says_op_type(name: str, op_type: str) -> bool:
    words = _words(name)
    known = find_op_type(op_type)
    ids = [kernel.id for kernel in known.kernels] if known else []
    return bool(words & set().union(_words(op_type), *map(_words, ids)))


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text) if len(word) > 2}


def _size(part: NamePart, known: Collection[int]) -> int | None:
    """Read the size that a part of a name says; words, formats such as `fp8` and versions such as `v2` say none."""
    is_version = part.word == "v" and (part.number or 0) < _LEAST_VOCABULARY and part.number not in known
    return None if is_version or part.word.lower() in _FORMATS else part.number


def _constants(naming: Naming) -> set[int]:
    """Numbers that the reference has baked in, such as top_k; a name may say them."""
    values = find_constants(naming.reference).values()
    return {value for value in values if isinstance(value, int) and not isinstance(value, bool)}


def _is_said(axis: str, value: int, named: Collection[int]) -> bool:
    """Tell whether a name says an axis: the sizes of a model by themselves, other axes through what they follow from."""
    if axis in AXIS_KEYS and axis not in _SHARED_OUT:
        return value == 1 or value in named
    return _follows(value, named)


def _follows(value: int, named: Collection[int]) -> bool:
    """Tell whether a length is named, or follows from those that are."""
    if value == 1 or any(abs(value - number) <= _NEAR for number in named):
        return True
    if any(value in (number * factor, -(-number // factor)) for number in named for factor in _FACTORS):
        return True
    return any(value == left + right for left in named for right in named)


def _key(axis: str) -> str:
    return AXIS_KEYS.get(axis) or "".join(word[0] for word in axis.split("_") if word).lower() or "n"
