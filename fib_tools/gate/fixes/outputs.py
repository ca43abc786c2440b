"""Outputs that have an input's name, and outputs that the reference does not return."""

from __future__ import annotations

from fib_tools.gate.fixes.draft import Draft, RefusedError
from fib_tools.gate.fixes.source import Function

__all__ = ["fix_outputs"]

_SUFFIX = "_out"


def fix_outputs(draft: Draft, function: Function) -> None:
    """Return the new value of an in-place tensor under a name of its own; drop optional outputs that never come.

    Raises:
        RefusedError: when the reference returns fewer values than required outputs.
    """
    _drop_not_returned(draft, function)
    outputs = {}
    for name, spec in draft.outputs.items():
        fresh = name
        if name in draft.inputs:
            fresh = f"{name}{_SUFFIX}" if f"{name}{_SUFFIX}" not in draft.inputs else f"updated_{name}"
            draft.change(f"output {name} renamed {fresh}: an input has the name")
            draft.renamed[fresh] = name
        outputs[fresh] = spec
        for table in (draft.output_views, draft.output_casts):
            if fresh != name and name in table:
                table[fresh] = table.pop(name)
    draft.outputs = outputs


def _drop_not_returned(draft: Draft, function: Function) -> None:
    count = function.returned_count
    if count is None or not count:
        return
    for name in [name for name, spec in draft.outputs.items() if spec.get("optional")][::-1]:
        if len(draft.outputs) <= count:
            return
        del draft.outputs[name]
        draft.output_views.pop(name, None)
        draft.output_casts.pop(name, None)
        draft.change(f"output {name} dropped: optional, and the reference does not return it")
    if len(draft.outputs) != count:
        wanted = ", ".join(draft.outputs)
        raise RefusedError(f"the reference returns {count} of the outputs {wanted}")
