"""Writes what the hook sees: one Definition a kernel, and how often each call came with which lengths.

    raw/rank0/gqa_paged_decode_h24_kv128_d128_ps8.json   as FlashInfer would have dumped it
    dumps/rank0/gqa_paged_decode_h24_kv8_d128_ps1.json   after the repairs
    calls/rank0-4711.jsonl                               {"definition": ..., "axes": {...}, "count": 6, "repairs": [...]}
    notes/4711.jsonl                                     what the hook did, and its own faults

A process of the engine may be killed at any time, so files are written as calls come, not at the end.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .repairs import Repair, repair_call

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from pathlib import Path

__all__ = ["Recorder", "describe_value"]

_MOST_CALLS = 2000
"""Unique calls that one process keeps; what comes after is counted as one."""
_MOST_NOTES = 200
_FLUSH_SECONDS = 1.0
"""How old the counts on disk may be while calls come."""
_MOST_ITEMS = 16
"""Members of a tuple that are described."""


def describe_value(value: Any) -> Hashable:
    """Describe an argument by what a trace can depend on: shapes and element types, never contents."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return ("tensor", tuple(int(length) for length in value.shape), str(value.dtype).rpartition(".")[2])
    if isinstance(value, (tuple, list)):
        return tuple(describe_value(item) for item in value[:_MOST_ITEMS])
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value).__name__


class Recorder:
    """The one of its process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._calls: dict[Hashable, dict[str, Any]] = {}
        self._results: dict[Hashable, dict[str, Any]] = {}
        self._written: set[tuple[str, str]] = set()
        self._notes = 0
        self._flushed = 0.0
        self._is_dirty = False

    def record(
        self, trace: Callable[..., dict[str, Any]], fi_api: str, arguments: dict[str, Any], *, template: Any
    ) -> dict[str, Any]:
        """Record one call of a traced API; `trace` makes its Definition."""
        with self._lock:
            try:
                return self._record(trace, fi_api, arguments, template)
            except Exception:  # noqa: BLE001  # the engine must come to its end
                self.note("fault", {"fi_api": fi_api, "error": traceback.format_exc(limit=6)})
                return {}

    def _record(
        self, trace: Callable[..., dict[str, Any]], fi_api: str, arguments: dict[str, Any], template: Any
    ) -> dict[str, Any]:
        key = (fi_api, id(template), *_describe_call(arguments))
        if self._count(key):
            return self._results.get(key, {})
        repair = repair_call(fi_api, arguments)
        raw = self._trace(trace, arguments, fi_api)
        fixed = self._trace(trace, repair.arguments, fi_api) or raw
        if fixed is None:
            return {}
        document = _state(fixed, repair, raw_name=str((raw or fixed)["name"]))
        if raw is not None:
            self._write_definition("raw", raw)
        name = self._write_definition("dumps", document)
        entry = {
            "definition": name,
            "fi_api": fi_api,
            "axes": _read_var_axes(template, repair.arguments),
            **({"raw": raw["name"]} if raw is not None and raw["name"] != name else {}),
            **({"repairs": repair.notes} if repair.notes else {}),
        }
        self._results[key] = document
        self._keep(key, entry)
        return document

    def _trace(
        self, trace: Callable[..., dict[str, Any]], arguments: dict[str, Any], fi_api: str
    ) -> dict[str, Any] | None:
        try:
            return trace(save_dir=None, **arguments) or None
        except Exception:  # noqa: BLE001  # a template that cannot read a call is a finding, not the engine's end
            self.note("fault", {"fi_api": fi_api, "error": traceback.format_exc(limit=6)})
            return None

    def record_other(self, kernel: str, details: dict[str, Any]) -> None:
        """Record a call of a kernel that FlashInfer does not trace."""
        with self._lock:
            key = (kernel, tuple((name, str(value)) for name, value in details.items()))
            with suppress(OSError):
                if not self._count(key):
                    self._keep(key, {"kernel": kernel, **details})

    def note(self, kind: str, details: dict[str, Any]) -> None:
        """Keep what the hook did, or what went wrong in it."""
        if self._notes < _MOST_NOTES:
            self._notes += 1
            with suppress(OSError):  # a full disk must not end the engine
                self._append(f"notes/{os.getpid()}.jsonl", {"note": kind, **details})

    def _count(self, key: Hashable) -> bool:
        entry = self._calls.get(key)
        if entry is None and len(self._calls) >= _MOST_CALLS:
            entry = self._calls.setdefault(None, {"definition": None, "axes": {}, "count": 0})
        if entry is None:
            return False
        entry["count"] += 1
        self._is_dirty = True
        self._flush()
        return True

    def _keep(self, key: Hashable, entry: dict[str, Any]) -> None:
        self._calls[key] = {**entry, "count": 1}
        self._is_dirty = True
        self._flush(is_due=True)

    def _flush(self, *, is_due: bool = False) -> None:
        now = time.monotonic()
        if self._is_dirty and (is_due or now - self._flushed >= _FLUSH_SECONDS):
            text = "".join(json.dumps(entry) + "\n" for entry in self._calls.values())
            self._write(f"calls/{_rank()}-{os.getpid()}.jsonl", text)
            self._flushed, self._is_dirty = now, False

    def _write_definition(self, kind: str, document: dict[str, Any]) -> str:
        """Write a Definition once; another of the same name gets a number, since both are kept."""
        name, text = str(document["name"]), json.dumps(document, indent=2)
        version = 1
        while (self.folder / kind / _rank() / _file_name(name, version)).exists():
            standing = (self.folder / kind / _rank() / _file_name(name, version)).read_text(encoding="utf-8")
            if standing == text:
                return name
            version += 1
        self._write(f"{kind}/{_rank()}/{_file_name(name, version)}", text)
        return name

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def _file_name(name: str, version: int) -> str:
    safe = "".join(char if char.isalnum() or char in "._-" else "_" for char in name)[:180]
    return f"{safe}.json" if version == 1 else f"{safe}__{version}.json"


def _rank() -> str:
    """Name this process's share of the work: torch knows its rank once the processes have found each other."""
    torch = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return f"rank{distributed.get_rank()}"
    return "rank0"


_PLANNED = ("_causal", "_window_left", "_logits_soft_cap", "_sm_scale")
_BUFFERS = ("_qo_indptr_buf", "_kv_indptr_buf", "_paged_kv_indptr_buf", "_paged_kv_indices_buf", "_kv_indices_buf")


def _describe_call(arguments: dict[str, Any]) -> list[Hashable]:
    """Describe a call by its arguments, and by what its wrapper planned."""
    found: list[Hashable] = [
        (name, describe_value(value)) for name, value in sorted(arguments.items()) if name != "self"
    ]
    wrapper = arguments.get("self")
    if wrapper is not None:
        found += [(name, describe_value(getattr(wrapper, name, None))) for name in (*_PLANNED, *_BUFFERS)]
    return found


def _state(document: dict[str, Any], repair: Repair, *, raw_name: str) -> dict[str, Any]:
    """Write into the dump what the kernel is, where its template cannot say it."""
    stated = dict(document)
    if repair.kernel is not None:
        stated |= {"fib_kernel": repair.kernel, "fib_axes": repair.parameters}
    if not repair.keeps_reference:
        stated.pop("reference", None)
    if repair.notes:
        stated["fib_repairs"] = list(repair.notes)
    if raw_name != stated["name"]:
        stated["fib_raw_name"] = raw_name
    return stated


def _read_var_axes(template: Any, arguments: dict[str, Any]) -> dict[str, int]:
    """Read the lengths of the var axes of one call."""
    found: dict[str, int] = {}
    for key, spec in template.inputs.items():
        names = getattr(spec, "dim_names", None)
        value: Any = arguments.get(getattr(spec, "param", None) or key)
        index = getattr(spec, "tuple_idx", None)
        if index is not None:
            value = value[index] if isinstance(value, (tuple, list)) and len(value) > index else None
        if not names or not hasattr(value, "shape") or len(value.shape) != len(names):
            continue
        for name, length in zip(names, value.shape, strict=True):
            if type(template.axes.get(name)).__name__ == "Var":
                found.setdefault(name, int(length))
    return found
