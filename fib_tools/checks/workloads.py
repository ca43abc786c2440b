"""Workloads: every axis and input of the Definition, blobs that are there and fit, and no uuid twice."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from fib_tools.checks.rules import Family, error, warning
from fib_tools.checks.view import DatasetView
from fib_tools.dataset.layout import Kind, Location
from fib_tools.errors import FibError, FormatError
from fib_tools.host.paths import confine
from fib_tools.model.definition import Definition, DType, TensorSpec
from fib_tools.model.expressions import evaluate, find_names
from fib_tools.model.report import Finding
from fib_tools.model.workload import SafetensorsInput, ScalarInput, Workload, workload_content
from fib_tools.op_types.axes import is_over_axes

__all__ = ["WORKLOADS"]

_UNREADABLE = error("workload.unreadable", "a line that is no workload", "mend or remove it")
_RESULT = error("workload.not_a_workload", "a line with a solution or an evaluation", "move it to traces/")
_OTHER = error("workload.definition_differs", "a line of another Definition", "move it to that Definition's file")
_MISSING_AXIS = error("workload.axis_missing", "no length for a var axis", "add it")
_EXTRA_AXIS = error("workload.axis_unknown", "a length for something that is no var axis", "remove it")
_EMPTY_AXIS = error("workload.axis_not_positive", "an axis of length 0", "use a length of at least 1")
_FALSE = error("workload.constraint_false", "the lengths break a constraint of the Definition", "correct the lengths")
_MISSING = error("workload.input_missing", "no source for an input", "add it")
_EXTRA = error("workload.input_unknown", "a source for something that is no input", "remove it")
_SCALAR = error("workload.scalar_for_tensor", "a scalar where the Definition has a tensor", "give a tensor")
_TENSOR = error("workload.tensor_for_scalar", "a tensor where the Definition has a scalar", "give the value")
_BLOB = error("workload.blob_missing", "a blob that is not there or cannot be read", "add the file")
_KEY = error("workload.blob_key_missing", "a blob without the tensor", "correct the key")
_SHAPE = error("workload.blob_shape", "a blob's tensor has another shape than the axes say", "write it again")
_DTYPE = error("workload.blob_dtype", "a blob's tensor has another dtype than the Definition says", "write it again")
_TWICE = error("workload.uuid_duplicate", "two workloads with one uuid", "give each its own")
_SAME = warning("workload.content_duplicate", "two workloads that say the same", "remove one")
_NONE = warning("workload.none", "a Definition without workloads", "collect workloads for it")
_UNUSED = warning("workload.blob_orphan", "a blob that no workload names", "remove it")

_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""dtype codes of a safetensors header (github.com/huggingface/safetensors, format description)."""

_HEADER_LIMIT = 16 << 20


def _check(view: DatasetView) -> Iterator[Finding]:
    used: set[str] = set()
    covered: set[str] = set()
    for path, location in view.of_kind(Kind.WORKLOADS):
        covered.add(location.definition)
        yield from _check_file(view, path, location, used)
    for name, found in view.definitions.items():
        if name not in covered and view.wants(name):
            yield _NONE.at(found[0][0], "it has no workload file", definition=name)
    for path, location in view.of_kind(Kind.BLOB):
        if location.definition in covered and path not in used:
            yield _UNUSED.at(path, "no workload names it", definition=location.definition)


def _check_file(view: DatasetView, path: str, location: Location, used: set[str]) -> Iterator[Finding]:
    definition = view.find_definition(location.definition)
    uuids = view.uuids.setdefault(location.definition, {})
    contents: dict[str, str] = {}
    for line in view.lines(path):
        trace = line.trace
        if trace is None:
            yield _UNREADABLE.at(line.where, line.problem, definition=location.definition)
            continue
        if not trace.is_workload:
            yield _RESULT.at(line.where, "it has a solution or an evaluation", definition=location.definition)
        if trace.definition != location.definition:
            yield _OTHER.at(line.where, f"it is for {trace.definition!r}", definition=location.definition)
        workload = trace.workload
        content = workload_content(workload)
        if workload.uuid in uuids:
            yield _TWICE.at(line.where, f"uuid {workload.uuid} stands above", definition=location.definition)
        elif content in contents:
            yield _SAME.at(line.where, f"it says what {contents[content]} says", definition=location.definition)
        uuids[workload.uuid] = content
        contents.setdefault(content, workload.uuid)
        if definition is not None:
            findings = (
                *_check_axes(line.where, workload, definition),
                *_check_inputs(view, line.where, workload, definition, used),
            )
            yield from (finding.model_copy(update={"definition": definition.name}) for finding in findings)


def _check_axes(where: str, workload: Workload, definition: Definition) -> Iterator[Finding]:
    missing = [name for name in definition.var_axes if name not in workload.axes]
    if missing:
        yield _MISSING_AXIS.at(where, f"no length for {', '.join(missing)}")
    extra = [name for name in workload.axes if name not in definition.var_axes]
    if extra:
        yield _EXTRA_AXIS.at(where, f"{', '.join(extra)} is no var axis of {definition.name}")
    empty = [name for name, size in workload.axes.items() if size <= 0]
    if empty:
        yield _EMPTY_AXIS.at(where, f"{', '.join(empty)} is 0")
    known = {**workload.axes, **definition.const_axes}
    for text in definition.constraints:
        if is_over_axes(text, definition) and find_names(text) <= known.keys() and not _holds(text, known):
            yield _FALSE.at(where, f"constraint {text!r} is false")


def _holds(text: str, axes: Mapping[str, int]) -> bool:
    try:
        return bool(evaluate(text, axes))
    except FormatError:
        return False


def _check_inputs(
    view: DatasetView, where: str, workload: Workload, definition: Definition, used: set[str]
) -> Iterator[Finding]:
    missing = [name for name, spec in definition.inputs.items() if name not in workload.inputs and not _optional(spec)]
    if missing:
        yield _MISSING.at(where, f"no source for {', '.join(missing)}")
    extra = [name for name in workload.inputs if name not in definition.inputs]
    if extra:
        yield _EXTRA.at(where, f"{', '.join(extra)} is no input of {definition.name}")
    sizes = {**workload.axes, **definition.const_axes}
    for name, given in workload.inputs.items():
        spec = definition.inputs.get(name)
        if isinstance(given, SafetensorsInput):
            used.add(given.path.removeprefix("./"))
        if spec is None:
            continue
        if isinstance(given, ScalarInput):
            if spec.shape is not None:
                yield _SCALAR.at(where, f"{name} has the shape {spec.shape}")
        elif spec.shape is None:
            yield _TENSOR.at(where, f"{name} is a scalar")
        elif isinstance(given, SafetensorsInput):
            yield from _check_blob(view, f"{where} {name}", given, (spec, sizes))


def _optional(spec: TensorSpec) -> bool:
    return bool((spec.model_extra or {}).get("optional"))


def _check_blob(
    view: DatasetView, where: str, given: SafetensorsInput, expected: tuple[TensorSpec, Mapping[str, int]]
) -> Iterator[Finding]:
    spec, sizes = expected
    try:
        header = _read_header(view, given.path.removeprefix("./"))
    except FibError as problem:
        yield _BLOB.at(where, f"{given.path}: {problem.what}")
        return
    entry = header.get(given.tensor_key)
    if not isinstance(entry, dict):
        yield _KEY.at(where, f"{given.path} has no tensor {given.tensor_key!r}")
        return
    shape = [sizes.get(axis) for axis in spec.shape or ()]
    if entry.get("shape") != shape:
        yield _SHAPE.at(where, f"{given.path} has the shape {entry.get('shape')}, the axes say {shape}")
    dtype = _SAFETENSORS.get(str(entry.get("dtype")), str(entry.get("dtype")))
    if dtype != spec.dtype.value and not (spec.dtype is DType.FLOAT4_E2M1 and dtype in {"uint8", "int8"}):
        yield _DTYPE.at(where, f"{given.path} has {dtype}, the Definition says {spec.dtype.value}")


def _read_header(view: DatasetView, path: str) -> dict[str, Any]:
    """Read the JSON header of a safetensors file: its length in 8 bytes, then the header; tensors are not read."""
    target = confine(view.dataset.root, *path.split("/"))
    try:
        with target.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            text = stream.read(min(length, _HEADER_LIMIT))
            stored = target.stat().st_size
    except OSError as problem:
        raise FormatError(f"cannot be read: {problem.strerror}", where=path) from problem
    header = _parse_header(text, path)
    body = stored - 8 - length
    ends = [entry["data_offsets"][1] for entry in header.values() if isinstance(entry, dict) and _has_offsets(entry)]
    if any(end > body for end in ends):
        raise FormatError("is cut short", where=path)
    return header


def _has_offsets(entry: dict[str, Any]) -> bool:
    offsets = entry.get("data_offsets")
    return isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(value, int) for value in offsets)


def _parse_header(text: bytes, path: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise FormatError("is no safetensors file", where=path) from problem
    if not isinstance(header, dict):
        raise FormatError("is no safetensors file", where=path)
    return header


WORKLOADS = Family(
    name="workload",
    rules=(
        _UNREADABLE, _RESULT, _OTHER, _MISSING_AXIS, _EXTRA_AXIS, _EMPTY_AXIS, _FALSE, _MISSING, _EXTRA, _SCALAR, _TENSOR,
        _BLOB, _KEY, _SHAPE, _DTYPE, _TWICE, _SAME, _NONE, _UNUSED,
    ),
    check=_check,
)  # fmt: skip
