"""Repairs that need a trial run as their witness: what the reference really returns, and what it writes into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fib_tools.errors import FormatError
from fib_tools.gate.fixes.source import read_function
from fib_tools.model.base import read_lenient, to_document
from fib_tools.model.definition import Definition, DType

__all__ = ["adapt"]

_WIDE = frozenset({"float64", "float32"})


def adapt(definition: Definition, seen: Mapping[str, Any]) -> tuple[Definition, tuple[str, ...]] | None:
    """Repair a Definition by what a trial run showed; None when there is nothing to repair.

    A wider float is rounded once to the declared type; a type that is not wider says that the declaration was a guess.
    """
    document = to_document(definition)
    casts: dict[str, str] = {}
    changes: list[str] = []
    for name, dtype in _pairs(seen.get("dtypes")):
        _adapt_dtype(document, name, dtype, casts=casts, changes=changes)
    copied = [name for name in _names(seen.get("mutated")) if name in document["inputs"]]
    changes += [f"input {name} copied: the reference writes into it" for name in copied]
    flat = [name for name in _names(seen.get("flat")) if name in document["outputs"]]
    changes += [f"output {name} flattened" for name in flat]
    if casts or copied or flat:
        document["reference"] = _wrap(document, casts=casts, copied=copied, flat=flat)
    if not changes:
        return None
    try:
        return read_lenient(Definition, document, where=definition.name), tuple(changes)
    except FormatError:
        return None


def _pairs(value: Any) -> list[tuple[str, str]]:
    return [(str(name), str(dtype)) for name, dtype in value.items()] if isinstance(value, dict) else []


def _names(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _adapt_dtype(document: dict[str, Any], name: str, dtype: str, *, casts: dict[str, str], changes: list[str]) -> None:
    spec = document["outputs"].get(name)
    if spec is None:
        return
    if dtype in _WIDE and spec["dtype"].startswith(("float", "bfloat")):
        casts[name] = spec["dtype"]
        changes.append(f"output {name} rounded from {dtype} to {spec['dtype']}")
    elif dtype in {item.value for item in DType}:
        changes.append(f"output {name}: {dtype}, as the reference returns it, not {spec['dtype']}")
        spec["dtype"] = dtype


def _wrap(document: dict[str, Any], *, casts: Mapping[str, str], copied: Sequence[str], flat: Sequence[str]) -> str:
    """Write another `run` around the one there is."""
    source = str(document["reference"])
    function = read_function(source)
    inner = "_run" if "def _run(" not in source else "_inner_run"
    lines = source.splitlines()
    lines[function.line - 1] = lines[function.line - 1].replace("def run(", f"def {inner}(", 1)
    inputs = ", ".join(f"{name}.clone()" if name in copied else name for name in document["inputs"])
    results = [f"out_{index}" for index in range(len(document["outputs"]))]
    values = []
    for name, result in zip(document["outputs"], results, strict=True):
        text = f"{result}.reshape(-1)" if name in flat else result
        values.append(f"{text}.to(torch.{casts[name]})" if name in casts else text)
    single = len(results) == 1
    body = [
        f"def run({', '.join(document['inputs'])}):",
        f"    {', '.join(results)} = {inner}({inputs})",
        *(
            [f"    {results[0]} = {results[0]}[0] if isinstance({results[0]}, (tuple, list)) else {results[0]}"]
            if single
            else []
        ),
        f"    return {', '.join(values)}",
    ]
    return "\n".join([*lines, "", "", *body]) + "\n"
