"""Injected faults: what a kernel gets wrong, put into the reference or into its outputs, to see whether bounds catch it.

A fault of the source changes one place: a sum that leaves out terms, a mask that is off by one, bfloat16 arithmetic.
A fault of an output changes its values: another scale, noise, two rows exchanged, zeros, the outputs of another call.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["OUTPUT_FAULTS", "REQUIRED", "SourceFault", "list_source_faults", "widen"]

REQUIRED = ("scaled", "noisy", "swapped-rows", "zeros", "stale", "half-sum")
"""Faults that bounds must catch, or they are none; the others tell how fine they are."""

_MOST_SITES = 6
"""Of one kind in one reference."""
_REDUCTIONS = ("mean", "sum", "amax", "logsumexp", "norm", "var", "std")
_LAST = (-1,)
_FLIPPED: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_CUT = """


def _cut(values, axis, part):
    length = values.shape[axis]
    return values.narrow(axis, 0, max(1, length // 2 if part == "half" else length - 1)) if length > 1 else values
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFault:
    """A reference with one mistake in it."""

    name: str
    """The kind, and the line it is in: `half-sum:7`."""
    source: str

    @property
    def kind(self) -> str:
        """What sort of mistake it is."""
        return self.name.partition(":")[0]


def widen(source: str) -> str:
    """Put float64 where a reference says float32; what it rounds to narrower types stays rounded."""
    return source.replace("torch.float32", "torch.float64").replace(".float()", ".double()")


def list_source_faults(source: str) -> list[SourceFault]:
    """Put one mistake at a time into a reference; what does not run with it, or is not changed by it, is no fault."""
    narrow = source.replace("torch.float32", "torch.bfloat16").replace(".float()", ".bfloat16()")
    faults = [SourceFault(name="bf16-arithmetic", source=narrow)] if narrow != source else []
    for kind, part in (("half-sum", "half"), ("dropped-term", "last")):
        faults += _mutate(source, kind, lambda site, part=part: _cut_site(site, part))  # type: ignore[misc]
    return faults + _mutate(source, "off-by-one", _flip_site)


def _mutate(source: str, kind: str, change: Callable[[ast.expr], bool]) -> list[SourceFault]:
    """Change one site after the other, each in a tree of its own."""
    faults: list[SourceFault] = []
    for index in range(len(list(_sites(ast.parse(source))))):
        own = ast.parse(source)
        site = list(_sites(own))[index]
        if change(site) and len(faults) < _MOST_SITES:
            text = ast.unparse(ast.fix_missing_locations(own)) + _CUT * (kind != "off-by-one")
            faults.append(SourceFault(name=f"{kind}:{site.lineno}.{site.col_offset}", source=text))
    return faults


def _sites(tree: ast.AST) -> Iterator[ast.expr]:
    """Walk over calls, products and comparisons; an assertion is not what a kernel computes, and loops must end."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Assert, ast.While)):
            continue
        if isinstance(node, (ast.Call, ast.BinOp, ast.Compare)):
            yield node
        yield from _sites(node)


def _flip_site(site: ast.expr) -> bool:
    if not (isinstance(site, ast.Compare) and type(site.ops[0]) in _FLIPPED):
        return False
    site.ops[0] = _FLIPPED[type(site.ops[0])]()
    return True


def _cut_site(site: ast.expr, part: str) -> bool:
    """Leave out terms of what is summed at a site; tell whether anything is."""
    if isinstance(site, ast.BinOp) and isinstance(site.op, ast.MatMult):
        site.left, site.right = _cut(site.left, -1, part), _cut(site.right, -2, part)
        return True
    if not (isinstance(site, ast.Call) and isinstance(site.func, ast.Attribute)):
        return False
    name, is_torch = site.func.attr, isinstance(site.func.value, ast.Name) and site.func.value.id in ("torch", "F")
    if name == "einsum" and is_torch:
        return _cut_einsum(site, part)
    if name in ("matmul", "bmm", "mm", "linear") and is_torch and len(site.args) >= 2:
        axis = -1 if name == "linear" else -2
        site.args[0], site.args[1] = _cut(site.args[0], -1, part), _cut(site.args[1], axis, part)
        return True
    if name not in _REDUCTIONS or _reduced_axis(site, 1 if is_torch else 0) != -1:
        return False
    if is_torch:
        site.args[0] = _cut(site.args[0], -1, part)
    else:
        site.func.value = _cut(site.func.value, -1, part)
    return True


def _cut(value: ast.expr, axis: int, part: str) -> ast.expr:
    arguments: list[ast.expr] = [value, ast.Constant(axis), ast.Constant(part)]
    return ast.Call(func=ast.Name("_cut", ast.Load()), args=arguments, keywords=[])


def _reduced_axis(call: ast.Call, first: int) -> int | None:
    given = [word.value for word in call.keywords if word.arg in ("dim", "axis")] or call.args[first : first + 1]
    if not given:
        return None
    try:
        axis = ast.literal_eval(given[0])
    except ValueError:
        return None
    return -1 if axis == -1 or axis in (_LAST, [-1]) else None


def _cut_einsum(call: ast.Call, part: str) -> bool:
    """Cut the first letter that is summed over, in every operand that has it."""
    if not (call.args and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)):
        return False
    inputs, arrow, output = call.args[0].value.replace(" ", "").partition("->")
    operands = inputs.split(",")
    summed = [letter for letter in inputs if letter.isalpha() and letter not in output]
    if not arrow or "..." in inputs or not summed or len(operands) != len(call.args) - 1:
        return False
    for place, letters in enumerate(operands, start=1):
        if summed[0] in letters:
            call.args[place] = _cut(call.args[place], letters.index(summed[0]), part)
    return True


def _scaled(right: torch.Tensor, _other: torch.Tensor) -> torch.Tensor | None:
    return (right.double() * 1.01).to(right.dtype)


def _noisy(right: torch.Tensor, _other: torch.Tensor) -> torch.Tensor | None:
    """Add or take away half the row's root mean square, in turn: no bias shows it."""
    import torch

    wide = right.double()
    rows = wide.reshape(-1, wide.shape[-1]) if wide.dim() else wide.reshape(1, 1)
    finite = rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    signs = torch.where(torch.arange(rows.shape[-1], device=right.device) % 4 < 2, 1.0, -1.0).double()
    squares = finite.square().sum(dim=-1, keepdim=True)
    half = (squares / rows.shape[-1]).sqrt() / 2
    along = (finite * signs).sum(dim=-1, keepdim=True) / squares.clamp(min=1e-300)
    return (rows + half * (signs - along * finite)).reshape(right.shape).to(right.dtype)


def _swapped(right: torch.Tensor, _other: torch.Tensor) -> torch.Tensor | None:
    """Exchange the first row with the one in the middle."""
    rows = right.reshape(-1, right.shape[-1]) if right.dim() > 1 else right[:0]
    if len(rows) < 2:
        return None
    changed = rows.clone()
    changed[[0, len(rows) // 2]] = rows[[len(rows) // 2, 0]]
    return changed.reshape(right.shape)


def _zeros(right: torch.Tensor, _other: torch.Tensor) -> torch.Tensor | None:
    import torch

    return torch.zeros_like(right)


def _stale(right: torch.Tensor, other: torch.Tensor) -> torch.Tensor | None:
    return other if other.shape == right.shape else None


OUTPUT_FAULTS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]] = {
    "scaled": _scaled,
    "noisy": _noisy,
    "swapped-rows": _swapped,
    "zeros": _zeros,
    "stale": _stale,
}
"""Each takes the right output and that of another call, and gives a wrong one, or None where it does not apply."""
