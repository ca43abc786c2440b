"""The `run` that takes a Definition's inputs in order and gives its outputs in order, around any reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fib_tools.errors import FormatError
from fib_tools.gate.fixes.axes import find_expressions
from fib_tools.gate.fixes.draft import Draft, RefusedError
from fib_tools.gate.fixes.source import Function, read_function
from fib_tools.model.expressions import find_names

__all__ = ["bake_scalars", "write_run"]

_FALLBACKS: Mapping[str, int | float | None] = {
    "workspace_buffer": None,
    "enable_pdl": None,
    "local_expert_offset": 0,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "activation_type": 3,
}
"""Neutral values of what FlashInfer's APIs require and its dumps leave out: scratch space, switches, scalars."""


def bake_scalars(draft: Draft, function: Function) -> None:
    """Leave out scalars that are constants of the kernel, switches of the API, or unknown to the reference."""
    for name in list(draft.inputs):
        spec = draft.inputs[name]
        parameter = draft.parameter_of(name)
        taken = parameter in function.parameters or name in function.parameters
        is_integer = spec["dtype"].startswith(("int", "bool"))
        if not taken and (spec.get("optional") or (spec["shape"] is None and name in draft.const_values)):
            draft.drop_input(name, "the reference does not take it")
        elif spec["shape"] is None and name in draft.const_values:
            draft.baked[parameter] = draft.const_values[name]
            draft.drop_input(name, f"the const axis {name} = {draft.const_values[name]} says it")
        elif spec["shape"] is None and is_integer and parameter in draft.axes_of_inputs():
            draft.drop_input(name, f"the axis {parameter} says it")
        elif spec["shape"] is None and is_integer and parameter in draft.values:
            draft.baked[parameter] = draft.values[parameter]
            draft.drop_input(name, f"its value {draft.values[parameter]!r} is a constant of the kernel")
        elif spec["shape"] is None and is_integer and (spec.get("optional") or name in (draft.absent or ())):
            _drop_switch(draft, name, parameter, function)


def _drop_switch(draft: Draft, name: str, parameter: str, function: Function) -> None:
    if parameter in function.defaulted:
        draft.drop_input(name, "a switch of the API keeps its default")
    elif parameter in _FALLBACKS:
        draft.baked[parameter] = _FALLBACKS[parameter]
        draft.drop_input(name, f"absent, so {_FALLBACKS[parameter]!r}")


def write_run(draft: Draft) -> None:
    """Make `run` the reference: by renaming it where it fits already, else with a wrapper around it.

    Raises:
        RefusedError: when a required parameter of the reference is nowhere to be had.
    """
    function = read_function(draft.reference)
    if _fits(draft, function):
        if function.name != "run":
            draft.reference = _rename(draft.reference, function)
            draft.change(f"reference: {function.name} renamed run")
        return
    if function.name == "run":
        draft.reference = _rename(draft.reference, function, to="_reference")
    name = "_reference" if function.name == "run" else function.name
    body = _write_body(draft, function, name)
    draft.reference = draft.reference.rstrip() + "\n\n\n" + body
    draft.change(f"reference: run written around {function.name}")


def _fits(draft: Draft, function: Function) -> bool:
    names = tuple(draft.inputs)
    rest = set(function.parameters) - set(names)
    plain = not (draft.views or draft.output_views or draft.output_casts or draft.renamed or draft.baked)
    returns = function.returned_count in {None, len(draft.outputs)}
    in_order = function.positional[: len(names)] == names and rest <= set(function.defaulted)
    return plain and returns and in_order and all(spec["shape"] is not None for spec in draft.outputs.values())


def _rename(source: str, function: Function, to: str = "run") -> str:
    lines = source.splitlines()
    lines[function.line - 1] = lines[function.line - 1].replace(f"def {function.name}(", f"def {to}(", 1)
    text = "\n".join(lines) + "\n"
    return text + (f"\n\n{function.name} = {to}\n" if text.count(f"{function.name}(") else "")


def _write_body(draft: Draft, function: Function, name: str) -> str:
    buffers: dict[str, str] = {}
    arguments = _arguments(draft, function, buffers)
    lines = ["@torch.no_grad()", f"def run({', '.join(draft.inputs)}):"]
    lines += [f"    {buffer} = {made}" for buffer, made in buffers.items()]
    call = f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
    if function.returned_count == 0:
        lines.append(f"    {call}")
        values = [_buffer_of(draft, output, buffers) for output in draft.outputs]
    elif len(draft.outputs) == 1:
        lines.append(f"    result = {call}")
        if function.returned_count is None:
            lines.append("    result = result[0] if isinstance(result, (tuple, list)) else result")
        values = ["result"]
    else:
        values = [f"result_{index}" for index in range(len(draft.outputs))]
        lines.append(f"    {', '.join(values)} = {call}")
    shaped = [_convert(draft, output, value) for output, value in zip(draft.outputs, values, strict=True)]
    lines.append(f"    return {', '.join(shaped)}")
    return "\n".join(lines) + "\n"


def _arguments(draft: Draft, function: Function, buffers: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    missing = []
    by_parameter = {draft.parameter_of(name): name for name in draft.inputs}
    for parameter in function.parameters:
        text = _argument(draft, parameter, by_parameter, buffers)
        if text is not None:
            if parameter in function.required or text != "None":
                found[parameter] = text
        elif parameter in function.required:
            missing.append(parameter)
    _pair_leftovers(draft, missing, found)
    return found


def _argument(draft: Draft, parameter: str, by_parameter: Mapping[str, str], buffers: dict[str, str]) -> str | None:
    name = parameter if parameter in draft.inputs else by_parameter.get(parameter)
    if name is not None:
        return _input(draft, name, buffers)
    if parameter in draft.baked:
        return _literal(draft.baked[parameter])
    if parameter in draft.const_values:
        return repr(draft.const_values[parameter])
    if parameter in draft.axes:
        return _length(draft, parameter)
    output = _output_of(draft, parameter)
    if output is not None:
        buffers[f"{parameter}_buffer"] = _allocate(draft, output)
        return f"{parameter}_buffer"
    if parameter in draft.values and not isinstance(draft.values[parameter], (list, tuple)):
        return _literal(draft.values[parameter])
    if parameter in _FALLBACKS and parameter not in draft.dropped:
        return repr(_FALLBACKS[parameter])
    return "None" if parameter in draft.dropped else None


def _input(draft: Draft, name: str, buffers: dict[str, str]) -> str:
    """Pass an input as the reference wants to see it; one that is written in place is copied first."""
    text = f"{name}.view(torch.{draft.views[name]})" if name in draft.views else name
    targets = {*draft.renamed.values(), *(spec.get("param") for spec in draft.outputs.values())}
    if name in draft.renamed.values() or (draft.parameter_of(name) in targets and draft.inputs[name]["shape"]):
        buffers[f"{name}_copy"] = f"{text}.clone()"
        return f"{name}_copy"
    return text


def _pair_leftovers(draft: Draft, missing: list[str], found: dict[str, str]) -> None:
    """Bind what has another name in the reference: the inputs that are left, in order, when the counts agree."""
    if not missing:
        return
    used = " ".join(found.values())
    unused = [name for name, spec in draft.inputs.items() if name not in used and not spec.get("optional")]
    if len(unused) != len(missing):
        raise RefusedError(f"the reference needs {', '.join(missing)}, which no input gives")
    for parameter, name in zip(missing, unused, strict=True):
        found[parameter] = _input(draft, name, {})
        draft.change(f"reference: {name} passed as {parameter}, by position")


def _output_of(draft: Draft, parameter: str) -> str | None:
    return next(
        (
            name
            for name, spec in draft.outputs.items()
            if parameter in (name, draft.renamed.get(name), spec.get("param"))
        ),
        None,
    )


def _buffer_of(draft: Draft, output: str, buffers: Mapping[str, str]) -> str:
    names = (draft.renamed.get(output), draft.outputs[output].get("param"), output)
    for name in names:
        for buffer in (f"{name}_copy", f"{name}_buffer"):
            if buffer in buffers:
                return buffer
    raise RefusedError(f"the reference returns nothing, and no argument of it is the output {output}")


def _allocate(draft: Draft, output: str) -> str:
    spec = draft.outputs[output]
    lengths = "".join(f"{_length(draft, axis)}, " for axis in spec["shape"] or ())
    return f"torch.zeros(({lengths}), dtype=torch.{spec['dtype']})"


def _length(draft: Draft, axis: str, pending: frozenset[str] = frozenset()) -> str:
    """Write an axis's length: its value, or where a tensor input shows it; `pending` axes wait for this one."""
    if axis in draft.const_values:
        return repr(draft.const_values[axis])
    for name, spec in draft.inputs.items():
        if spec["shape"] and axis in spec["shape"]:
            return f"{name}.shape[{spec['shape'].index(axis)}]"
    waiting = pending | {axis}
    expression = next((text for text in find_expressions(draft, axis) if _is_free_of(text, waiting)), None)
    if expression is None:
        raise RefusedError(f"the reference needs the length of {axis}, which no input has")
    lengths = {name: _length(draft, name, waiting) for name in find_names(expression)}
    return "(" + re.sub(r"[A-Za-z_]\w*", lambda match: lengths.get(match[0], match[0]), expression) + ")"


def _is_free_of(text: str, axes: frozenset[str]) -> bool:
    """Tell whether an expression is arithmetic over other axes than these."""
    try:
        return not find_names(text) & axes
    except FormatError:
        return False


def _literal(value: Any) -> str:
    if isinstance(value, dict) and "torch_dtype" in value:
        return f"torch.{value['torch_dtype']}"
    return repr(value)


def _convert(draft: Draft, output: str, value: str) -> str:
    if output in draft.output_views:
        return f"{value}.view(torch.{draft.output_views[output]})"
    if output in draft.output_casts:
        return f"{value}.to(torch.{draft.output_casts[output]})"
    return value
