"""What of a model no Definition covers yet: the open gaps that Path B is for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from fib_tools.model.base import Model
from fib_tools.model.manifest import DefineStatus, Manifest

__all__ = ["Gap", "find_gap", "list_gaps"]

_DETAIL_LENGTH = 240
_MISSING = re.compile(
    r"\bno (?:kernel type|op_type|Definition)\b|\bis not (?:listed|described|covered)\b", re.IGNORECASE
)
"""How a note says that a kernel has no type."""


class Gap(Model):
    """One thing that a model computes and no Definition describes."""

    name: str
    """By which a brief is asked for, such as `gelu in model.layers.*.mlp.act_fn`."""
    kind: Literal["unexplained", "refused", "note"]
    """An operation that no witness explains, a kernel that was refused, or a remark of the inventory."""
    detail: str = ""


def list_gaps(manifest: Manifest, *, filled: tuple[str, ...] = ()) -> tuple[Gap, ...]:
    """List a model's open gaps, without those that a Definition was admitted for."""
    gaps = {gap.name: gap for gap in _gaps_of(manifest)}
    return tuple(gap for name, gap in gaps.items() if name not in filled)


def _gaps_of(manifest: Manifest) -> Iterator[Gap]:
    for entry in manifest.unexplained:
        yield Gap(name=f"{entry.operation} in {entry.module}", kind="unexplained", detail=entry.detail[:_DETAIL_LENGTH])
    for refusal in manifest.refused:
        yield Gap(name=refusal.subject[:_DETAIL_LENGTH], kind="refused", detail=refusal.reason[:_DETAIL_LENGTH])
    for kernel in manifest.kernels:
        if kernel.define_status is DefineStatus.REFUSED:
            yield Gap(name=kernel.name, kind="refused", detail=kernel.define_reason[:_DETAIL_LENGTH])
    for note in manifest.notes:
        if _MISSING.search(note):
            yield Gap(name=note[:80], kind="note", detail=note[:_DETAIL_LENGTH])


def find_gap(gaps: tuple[Gap, ...], name: str) -> Gap | None:
    """Find a gap by its name, or by the operation it begins with when only one has that."""
    exact = [gap for gap in gaps if gap.name == name]
    by_operation = [gap for gap in gaps if gap.name.partition(" in ")[0] == name]
    return exact[0] if exact else by_operation[0] if len(by_operation) == 1 else None
