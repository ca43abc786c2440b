"""GPU activity records: CUPTI through ctypes, with only what timing needs.

Source: cupti_activity.h of CUDA 11 to 13 (CUpti_ActivityKernel4 to 10, Memcpy3 to 6, Memset2 to 4, MemcpyPtoP), whose
fields that are read here stand at the same offsets in all of them. Times are in nanoseconds.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fib_tools.errors import MissingDependencyError

__all__ = ["Activity", "Cupti", "Kind"]

_BUFFER_BYTES = 4 << 20
_FLUSH_FORCED = 1
_NAME_LENGTH = 400
_REQUESTED = ctypes.CFUNCTYPE(
    None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
)
_COMPLETED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


class Kind:
    """CUpti_ActivityKind: work of the device."""

    MEMCPY = 1
    MEMSET = 2
    KERNEL = 10
    """CONCURRENT_KERNEL, which leaves kernels of several streams concurrent."""
    MEMCPY_PEER = 22


_CORRELATION_AT = {Kind.MEMCPY: 44, Kind.MEMSET: 44, Kind.MEMCPY_PEER: 60}
_RECORD_BYTES = 112
_HEAD = struct.Struct("<IIQQQ")
"""Kind, a memset's value, a size, start and end."""
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class Activity(NamedTuple):
    """One piece of work that the device did."""

    correlation: int
    """Of the launch: grows from call to call of the driver, whatever the stream or thread."""
    start: int
    """Nanoseconds."""
    end: int
    kind: int
    value: int
    """Of a memset; 0 otherwise."""
    name: str
    """Of a kernel, mangled; empty otherwise."""


class Cupti:
    """Activity records of this process, from the making of this object on."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_find_library())
        next_record: Any = self._library.cuptiActivityGetNextRecord
        next_record.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)]
        self._next: Callable[..., int] = next_record
        self._buffers: dict[int, Any] = {}
        self._spare: list[Any] = []
        self._full: list[tuple[int, int]] = []
        self._callbacks = (_REQUESTED(self._give_buffer), _COMPLETED(self._take_buffer))
        self._names: dict[int, str] = {}
        self._check("cuptiActivityRegisterCallbacks", *self._callbacks)
        self._is_on = False
        self.switch(on=True)

    def switch(self, *, on: bool) -> None:
        """Keep records from here on, or none."""
        if on is self._is_on:
            return
        for kind in (Kind.KERNEL, Kind.MEMCPY, Kind.MEMSET, Kind.MEMCPY_PEER):
            self._check("cuptiActivityEnable" if on else "cuptiActivityDisable", kind)
        self._is_on = on

    def _check(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise MissingDependencyError(
                "CUPTI",
                purpose=f"timing by GPU activity ({function} gave {status})",
                install="end other profilers, or use --timer events",
            )

    def _give_buffer(self, buffer: Any, size: Any, most: Any) -> None:
        memory = self._spare.pop() if self._spare else ctypes.create_string_buffer(_BUFFER_BYTES + 8)
        address = (ctypes.addressof(memory) + 7) // 8 * 8
        self._buffers[address] = memory
        buffer[0], size[0], most[0] = address, _BUFFER_BYTES, 0

    def _take_buffer(self, _context: Any, _stream: int, buffer: int, _size: int, valid: int) -> None:
        self._full.append((buffer, valid))

    def collect(self) -> list[Activity]:
        """Give what the device did since the last call, in the order of launch; the device must be idle."""
        self._check("cuptiActivityFlushAll", _FLUSH_FORCED)
        found: list[Activity] = []
        full, self._full = self._full, []
        for address, valid in full:
            record = ctypes.c_void_p(None)
            while self._next(address, valid, ctypes.byref(record)) == 0:
                activity = self._read(record.value or 0)
                if activity is not None:
                    found.append(activity)
            self._spare.append(self._buffers.pop(address))
        found.sort()
        return found

    def _read(self, address: int) -> Activity | None:
        raw = ctypes.string_at(address, _RECORD_BYTES)
        kind, value, _, start, end = _HEAD.unpack_from(raw)
        if kind == Kind.KERNEL:
            (correlation,) = _U32.unpack_from(raw, 92)
            (name,) = _U64.unpack_from(raw, 104)
            return Activity(correlation, start, end, kind, 0, self._names.get(name) or self._name(name))
        at = _CORRELATION_AT.get(kind)
        if at is None:
            return None
        (correlation,) = _U32.unpack_from(raw, at)
        return Activity(correlation, start, end, kind, value if kind == Kind.MEMSET else 0, "")

    def _name(self, address: int) -> str:
        """Read a name once for each address; CUPTI keeps its strings."""
        if address not in self._names:
            text = ctypes.string_at(address)[:_NAME_LENGTH] if address else b""
            self._names[address] = text.decode(errors="replace")
        return self._names[address]


def _find_library() -> str:
    """Find the CUPTI that torch brought, else that of a CUDA toolkit; another than torch's own may not fit the driver."""
    folders = [Path(entry) / "nvidia" for entry in sys.path]
    places = [(folder, f"{part}/lib/libcupti.so*") for folder in folders for part in ("cu*", "cuda_cupti")]
    places += [(Path("/usr/local"), f"cuda*/{part}/libcupti.so*") for part in ("extras/CUPTI/lib64", "targets/*/lib")]
    for folder, pattern in places:
        found = sorted(folder.glob(pattern))
        if found:
            return str(found[0])
    raise MissingDependencyError(
        "libcupti", purpose="timing by GPU activity", install="pip install nvidia-cuda-cupti, or use --timer events"
    )
