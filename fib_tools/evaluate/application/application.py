"""A Solution as FlashInfer's trace_apply wants it, under the name that it routes by.

Read off FlashInfer 0.7.2.post1, `flashinfer/trace_apply/`: a call's name is its template's prefix and const axes, and
nothing else decides (not types, not eps, not masks). Python is called by keyword with the template's input names, absent
ones left out; compiled code by position. Outputs are given back in the Solution's own number. So Python Solutions get an
entry of their own: it puts the inputs in order, makes outputs where they are passed, gives back what was asked for, and
raises where types or sizes are not those that the Solution was evaluated with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fib_tools.errors import FormatError
from fib_tools.model.base import to_document
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Binding, Language, Solution, SourceFile
from fib_tools.model.tags import merge_tags

__all__ = ["Application", "Interface", "find_interface", "make_application", "make_documents"]

_ENTRY = "fib_apply.py"
_NATIVE = frozenset({Language.CPP, Language.CUDA})
_LSE_FLAG = "return_lse"
"""The template's input by which a caller asks for optional outputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interface:
    """How a template's inputs and outputs are those of a Definition."""

    name: str
    """What trace_apply routes by."""
    keys: Mapping[str, str]
    """The template's name of each input, in the Definition's order."""
    optional_outputs: int = 0
    """How many outputs, at the end, are given back only when asked for."""
    is_same_order: bool = True
    """The template has these inputs, in this order, and no others: what compiled code needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Application:
    """What is written for one Definition: both documents under FlashInfer's name."""

    definition: Definition
    solution: Solution
    interface: Interface


def find_interface(definition: Definition, name: str, raw: Mapping[str, Any]) -> Interface:
    """Match a Definition with the template that FlashInfer has for it; `raw` is the template's dump.

    Raises:
        FormatError: FlashInfer does not hand over an input, or wants other outputs.
    """
    theirs = list(raw["inputs"])
    by_fold = {key.casefold(): key for key in theirs}
    keys = {own: own if own in theirs else by_fold.get(own.casefold(), "") for own in definition.inputs}
    absent = [own for own, key in keys.items() if not key]
    if absent:
        raise FormatError(f"FlashInfer does not hand over {', '.join(absent)}", where=name)
    flags = [bool(output.get("optional")) for output in raw["outputs"].values()]
    if len(flags) != len(definition.outputs) or flags != sorted(flags):
        raise FormatError(f"FlashInfer wants {', '.join(raw['outputs'])} of it", where=name)
    if any(flags) and _LSE_FLAG not in theirs:
        raise FormatError("FlashInfer does not tell which outputs it wants", where=name)
    return Interface(
        name=name,
        keys=keys,
        optional_outputs=sum(flags),
        is_same_order=list(keys.values()) == theirs and not any(flags),
    )


def make_application(definition: Definition, solution: Solution, interface: Interface, fi_api: str) -> Application:
    """Write a Definition and its Solution under FlashInfer's name.

    Raises:
        FormatError: trace_apply cannot run the Solution; the message says why.
    """
    tags = merge_tags([tag for tag in definition.tags if not tag.startswith("fi_api:")], [f"fi_api:{fi_api}"])
    renamed = definition.model_copy(update={"name": interface.name, "tags": tags})
    own = {"definition": interface.name}
    if solution.spec.language in _NATIVE:
        _check_native(solution, interface)
        return Application(definition=renamed, solution=solution.model_copy(update=own), interface=interface)
    _check_python(solution)
    sources = [*solution.sources, SourceFile(path=_ENTRY, content=_write_entry(definition, solution, interface))]
    update = {"entry_point": f"{_ENTRY}::run", "destination_passing_style": False}
    spec = solution.spec.model_copy(update=update)
    changed = solution.model_copy(update={**own, "spec": spec, "sources": sources})
    return Application(definition=renamed, solution=changed, interface=interface)


def _check_native(solution: Solution, interface: Interface) -> None:
    if solution.spec.binding is Binding.TORCH:
        raise FormatError("trace_apply builds C++ and CUDA through TVM-FFI only", where=solution.name)
    if not interface.is_same_order:
        raise FormatError("trace_apply calls compiled code with inputs in another order or number", where=solution.name)


def _check_python(solution: Solution) -> None:
    file, _, function = solution.spec.entry_point.partition("::")
    modules = [source.path for source in solution.sources if source.path.endswith(".py")]
    if modules != [file] or file == _ENTRY:
        raise FormatError("trace_apply loads one Python file alone, and this has several", where=solution.name)
    text = next(source.content for source in solution.sources if source.path == file)
    if function != "setup" and "def setup(" in text:
        raise FormatError("it declares setup, for which trace_apply has no place", where=solution.name)


_TEXT = '''"""Calls a Solution as FlashInfer's trace_apply does. Written by fib apply; the author's file is the other one."""

import importlib.util
import sys
from pathlib import Path

import torch

NAME, FILE, FUNCTION, HASH = {facts}
KEYS = {keys}
TYPES = {types}
SIZES = {sizes}


def load():
    spec = importlib.util.spec_from_file_location("fib_applied_" + HASH, Path(__file__).parent / FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, FUNCTION)


solution = load()


def check(given):
    for key, dtype in TYPES:
        if given[key].dtype is not dtype:
            raise TypeError(f"{{NAME}} was evaluated with {{key}} of {{dtype}}, not of {{given[key].dtype}}")
    for key, dim, size in SIZES:
        if given[key].shape[dim] != size:
            raise TypeError(f"{{NAME}} was evaluated with {{size}}, not {{given[key].shape[dim]}}, in dim {{dim}} of {{key}}")


def run(**given):
    # FlashInfer routes by name alone, so that calls may come which the Solution is not for.
    check(given)
    inputs = [given[key] for key in KEYS]
{call}
{back}
'''
_CALL = "    outputs = solution(*inputs)\n    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)"
_ASKED = "    if not given.get({flag!r}):\n        outputs = outputs[:-{count}]\n"
_BACK = "    return outputs[0] if len(outputs) == 1 else tuple(outputs)"


def _write_entry(definition: Definition, solution: Solution, interface: Interface) -> str:
    file, _, function = solution.spec.entry_point.partition("::")
    count = interface.optional_outputs
    asked = _ASKED.format(flag=_LSE_FLAG, count=count) if count else ""
    tensors = [(interface.keys[name], spec) for name, spec in definition.inputs.items() if spec.shape is not None]
    types = [f'("{key}", torch.{spec.dtype.value})' for key, spec in tensors]
    sizes = [f'("{key}", {dim}, {size})' for key, dim, size in _list_sizes(definition, interface)]
    return _TEXT.format(
        facts=repr((solution.name, file, function, solution.hash[:16])),
        keys=_tuple(f'"{key}"' for key in interface.keys.values()),
        types=_tuple(types),
        sizes=_tuple(sizes),
        call=_write_passing(definition, interface) if solution.spec.destination_passing_style else _CALL,
        back=asked + _BACK,
    )


def _tuple(items: Iterable[str]) -> str:
    rows = "".join(f"    {item},\n" for item in items)
    return f"(\n{rows})" if rows else "()"


def _list_sizes(definition: Definition, interface: Interface) -> list[tuple[str, int, int]]:
    """Say for each const axis of a tensor where it stands: input, dimension, length."""
    found: dict[str, tuple[str, int, int]] = {}
    for axis, (key, dim) in _place_axes(definition, interface).items():
        if axis in definition.const_axes:
            found[axis] = (key, dim, definition.const_axes[axis])
    return list(found.values())


def _place_axes(definition: Definition, interface: Interface) -> dict[str, tuple[str, int]]:
    places: dict[str, tuple[str, int]] = {}
    for name, spec in definition.inputs.items():
        for dim, axis in enumerate(spec.shape or ()):
            places.setdefault(axis, (interface.keys[name], dim))
    return places


def _write_passing(definition: Definition, interface: Interface) -> str:
    """Write the making of outputs, for a Solution that is passed them."""
    places = _place_axes(definition, interface)
    device = next(interface.keys[name] for name, spec in definition.inputs.items() if spec.shape)
    lines = []
    for name, spec in definition.outputs.items():
        if spec.shape is None:
            raise FormatError(f"the output {name} is no tensor, and cannot be passed", where=definition.name)
        lengths = [_write_length(definition, axis, places) for axis in spec.shape]
        shape = f"({', '.join(lengths)}{',' * (len(lengths) == 1)})"
        lines.append(f'        torch.empty({shape}, dtype=torch.{spec.dtype.value}, device=given["{device}"].device),')
    return "\n".join(["    outputs = (", *lines, "    )", "    solution(*inputs, *outputs)"])


def _write_length(definition: Definition, axis: str, places: Mapping[str, tuple[str, int]]) -> str:
    if axis in definition.const_axes:
        return str(definition.const_axes[axis])
    if axis not in places:
        raise FormatError(f"no input tells the length of {axis}", where=definition.name)
    key, dim = places[axis]
    return f'given["{key}"].shape[{dim}]'


def make_documents(applications: Iterable[Application], facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Write the files of the folder by their path in it: what FlashInfer reads, and `fib_apply.json`, which it does not."""
    documents = {"fib_apply.json": canonical_bytes({"format": 1, **to_document(dict(facts))})}
    for each in applications:
        name, op_type, author = each.definition.name, each.definition.op_type, each.solution.author
        documents[f"definitions/{op_type}/{name}.json"] = canonical_bytes(each.definition)
        documents[f"solutions/{author}/{op_type}/{name}/{each.solution.name}.json"] = canonical_bytes(each.solution)
    documents.setdefault("solutions/.keep", b"")
    return documents
