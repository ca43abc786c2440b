"""From a raw FlashInfer dump, of any version, to a Definition: or to the reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from fib_tools.errors import FormatError
from fib_tools.gate.fixes.axes import fix_axes, fix_constraints
from fib_tools.gate.fixes.draft import Draft, RefusedError, read_draft
from fib_tools.gate.fixes.dtypes import fix_dtypes
from fib_tools.gate.fixes.inline import inline_helpers
from fib_tools.gate.fixes.library import find_library
from fib_tools.gate.fixes.outputs import fix_outputs
from fib_tools.gate.fixes.source import read_function
from fib_tools.gate.fixes.wrapper import bake_scalars, write_run
from fib_tools.gate.recognise import Recognised, recognise
from fib_tools.gate.strict import find_axis_faults
from fib_tools.gate.templates import TemplateResult
from fib_tools.model.base import Model, NonEmpty, read_lenient
from fib_tools.model.definition import Definition
from fib_tools.model.tags import merge_tags, parse_tag

__all__ = ["Normalised", "normalise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalised:
    """What became of a dump."""

    definition: Definition | None
    """None when it was refused."""
    changes: tuple[str, ...] = ()
    refused: str | None = None
    recognised: Recognised | None = None
    """The kernel type of ours that it is."""
    is_canonical: bool = False
    """The dump could not be kept: this is our Definition of the kernel it describes."""


def normalise(
    raw: Mapping[str, Any], *, call: TemplateResult | None = None, siblings: Sequence[Mapping[str, Any]] = ()
) -> Normalised:
    """Repair a dump; `call` is what is known of the call it came from, `siblings` the dumps beside it."""
    problem = _find_problem(raw)
    if problem is not None:
        return Normalised(definition=None, refused=problem)
    found = recognise(raw, siblings=siblings)
    faults = find_axis_faults(raw)
    if faults:
        is_repaired = found is not None and bool(found.repairs)
        return _canonical(raw, found if is_repaired else None, reason="; ".join(faults))
    changes: list[str] = []
    try:
        draft = read_draft(raw, values=call.values if call else {}, absent=_find_absent(call))
        changes = draft.changes
        _repair(draft, call, found)
        definition = read_lenient(Definition, draft.to_document(), where=draft.name)
    except RefusedError as refusal:
        return _canonical(raw, found, reason=str(refusal), changes=changes)
    except FormatError as error:
        return _canonical(raw, found, reason=error.what, changes=changes)
    return Normalised(definition=definition, changes=tuple(changes), recognised=found)


class _RawTensor(Model):
    shape: list[str] | None
    dtype: str


class _Dump(Model):
    """What every raw dump has, of whatever version; everything after may rely on it."""

    name: NonEmpty
    op_type: NonEmpty
    description: str | None = None
    tags: list[str] | None = None
    axes: dict[NonEmpty, dict[str, Any]]
    constraints: list[str] | None = None
    inputs: dict[NonEmpty, _RawTensor]
    outputs: dict[NonEmpty, _RawTensor] = Field(default_factory=dict)
    reference: str | None = None


def _find_problem(raw: Mapping[str, Any]) -> str | None:
    """Say what makes a document no dump at all."""
    try:
        read_lenient(_Dump, raw, where="dump")
        for tag in raw.get("tags") or ():
            parse_tag(tag)
    except FormatError as error:
        return f"not a dump: {error.what.partition(': ')[2] or error.what}"
    return None


def _canonical(
    raw: Mapping[str, Any], found: Recognised | None, *, reason: str, changes: Sequence[str] = ()
) -> Normalised:
    """Put our own Definition in the place of a dump that is beyond repair, where we know the kernel."""
    if found is None:
        return Normalised(definition=None, changes=tuple(changes), refused=reason)
    built = found.build()
    kept = [tag for tag in raw.get("tags") or () if isinstance(tag, str) and tag.startswith("fi_api:")]
    tags = merge_tags(built.tags, kept, [f"fi_name:{raw['name']}", "status:unverified"])
    return Normalised(
        definition=built.model_copy(update={"tags": tags}),
        changes=(*changes, *found.repairs, f"written anew as {built.name}: {reason}"),
        recognised=found,
        is_canonical=True,
    )


def _find_absent(call: TemplateResult | None) -> frozenset[str] | None:
    """Name the inputs that the call left out; None when it is not known."""
    if call is None or not call.parameters:
        return None
    scalars = {name for name in call.parameters if name not in call.bindings}
    unpassed = {name for name in scalars if call.parameters[name] not in call.values}
    return frozenset(unpassed | {name for name, shape in call.bindings.items() if shape is None})


def _repair(draft: Draft, call: TemplateResult | None, found: Recognised | None) -> None:
    for name, parameter in (call.parameters if call else {}).items():
        if parameter != name and name in draft.inputs:
            draft.inputs[name].setdefault("param", parameter)
    fix_dtypes(draft)
    inline_helpers(draft, find_library())
    function = read_function(draft.reference)
    bake_scalars(draft, function)
    if found is not None:
        _drop_surplus(draft, found)
    fix_axes(draft)
    fix_outputs(draft, function)
    fix_constraints(draft)
    write_run(draft)
    _fix_tags(draft)


def _drop_surplus(draft: Draft, found: Recognised) -> None:
    """Leave out scalars that are for other kernels of the same API, such as the scales of an FP8 cache."""
    ours = found.build().inputs
    if not set(ours) <= set(draft.inputs):
        return
    for name, spec in list(draft.inputs.items()):
        if name not in ours and spec["shape"] is None and spec.get("optional"):
            draft.drop_input(name, f"optional, and no input of {found.kernel}")


def _fix_tags(draft: Draft) -> None:
    """Take back a verification that is a static claim of the template, and keep the name that trace_apply routes by."""
    kept = [tag for tag in draft.tags if not tag.startswith("status:")]
    if "status:verified" in draft.tags:
        draft.change("tag status:verified taken back: nothing was checked against the kernel")
    draft.tags = merge_tags(kept, [f"fi_name:{draft.name}", "status:unverified"])
