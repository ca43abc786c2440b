"""The header of a GGUF file: metadata and where each tensor lies, read with bounds.

GGUF (ggml/docs/gguf.md), little-endian: magic "GGUF", version, counts of tensors and of metadata pairs,
the pairs (name, type, value), the tensors (name, dimensions innermost first, GGML type, offset), padding, data.
The package's own reader walks through arrays of any announced length, also beyond the end of the file;
this one believes no count that the file is too short for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fib_tools.errors import FormatError

__all__ = ["GgufHeader", "GgufTensor", "read_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_NAME = 256
_LONGEST_STRING = 1 << 20
_KEPT = 4096
"""Longer arrays are vocabularies; only their length is kept."""
_MAX_DIMS = 4
_DAMAGED = "fetch the file again: it is cut off or damaged"


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """Where one tensor lies."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first: the other way round than in the file."""
    type_code: int
    """Of GGML's types, `gguf.GGMLQuantizationType`."""
    offset: int
    """From the beginning of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """What the file says before its data."""

    metadata: dict[str, Any]
    """Numbers, truth values, strings, lists; of long arrays their length alone, as a `range`."""
    tensors: tuple[GgufTensor, ...]


class _Cursor:
    """A place in the file that never leaves it."""

    def __init__(self, data: memoryview, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise FormatError(f"its header runs past the end, at byte {self.at}", where=self.where, todo=_DAMAGED)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self, longest: int) -> str:
        size = self.number("Q")
        if size > longest:
            raise FormatError(f"a string of {size} bytes, at byte {self.at}", where=self.where, todo=_DAMAGED)
        return bytes(self.take(size)).decode("utf-8", errors="replace")

    def count(self, least: int) -> int:
        """Read a count of things that take at least so many bytes each."""
        count: int = self.number("Q")
        if count * least > len(self.data) - self.at:
            raise FormatError(f"a count of {count}, at byte {self.at}", where=self.where, todo=_DAMAGED)
        return count


def read_header(data: memoryview, where: Path) -> GgufHeader:
    """Read the header from the mapped bytes of a file.

    Raises:
        FormatError: it is no GGUF file of version 2 or 3, is cut off, or says what cannot be.
    """
    cursor = _Cursor(data, str(where))
    if len(data) < 24 or bytes(cursor.take(4)) != _MAGIC:
        raise FormatError("not a GGUF file", where=str(where), todo="pass a file that begins with GGUF")
    version = cursor.number("I")
    if version not in _VERSIONS:
        todo = "convert it anew with a recent llama.cpp, on a little-endian machine"
        raise FormatError(f"GGUF version {version} is not read, only 2 and 3", where=str(where), todo=todo)
    tensors, pairs = cursor.count(24), cursor.count(13)
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        name = cursor.string(_LONGEST_NAME)
        if name in metadata:
            raise FormatError(f"the metadata has {name!r} twice", where=str(where), todo=_DAMAGED)
        metadata[name] = _read_value(cursor, cursor.number("I"))
    raw = [_read_tensor(cursor) for _ in range(tensors)]
    return GgufHeader(metadata=metadata, tensors=_place(raw, cursor, metadata.get("general.alignment", 32)))


def _read_value(cursor: _Cursor, code: int) -> Any:
    if code in _SCALARS:
        return cursor.number(_SCALARS[code])
    if code == _STRING:
        return cursor.string(_LONGEST_STRING)
    if code == _ARRAY:
        return _read_array(cursor, cursor.number("I"))
    raise FormatError(f"metadata of type {code}, at byte {cursor.at}", where=cursor.where, todo=_DAMAGED)


def _read_array(cursor: _Cursor, code: int) -> Any:
    if code == _STRING:
        count = cursor.count(8)
        kept = [cursor.string(_LONGEST_STRING) for _ in range(count)]
        return kept if count <= _KEPT else range(count)
    if code not in _SCALARS:
        raise FormatError(f"an array of type {code}, at byte {cursor.at}", where=cursor.where, todo=_DAMAGED)
    size = struct.calcsize(f"<{_SCALARS[code]}")
    count = cursor.count(size)
    part = cursor.take(count * size)
    return list(struct.unpack(f"<{count}{_SCALARS[code]}", part)) if count <= _KEPT else range(count)


def _read_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(_LONGEST_NAME)
    dims = cursor.number("I")
    if not 1 <= dims <= _MAX_DIMS:
        raise FormatError(f"{name!r} has {dims} dimensions", where=cursor.where, todo=_DAMAGED)
    shape = tuple(reversed([int(cursor.number("Q")) for _ in range(dims)]))
    return name, shape, cursor.number("I"), cursor.number("Q")


def _place(raw: list[tuple[str, tuple[int, ...], int, int]], cursor: _Cursor, alignment: Any) -> tuple[GgufTensor, ...]:
    """Turn offsets from the beginning of the data into offsets from the beginning of the file."""
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        raise FormatError(f"general.alignment is {alignment!r}", where=cursor.where, todo=_DAMAGED)
    start = -(-cursor.at // alignment) * alignment
    for name, _, _, offset in raw:
        if offset % alignment:
            raise FormatError(f"{name!r} lies at {offset}, off the alignment", where=cursor.where, todo=_DAMAGED)
    return tuple(
        GgufTensor(name=name, shape=shape, type_code=code, offset=start + offset) for name, shape, code, offset in raw
    )
