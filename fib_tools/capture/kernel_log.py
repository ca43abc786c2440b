"""SGLang's log of kernel calls (SGLANG_KERNEL_API_LOGLEVEL=3), read as evidence for what FlashInfer does not trace.

================================================================================
[2026-11-21 10:00:00] SGLang Kernel API Call: elementwise.silu_and_mul
Positional input arguments:
  arg[0]=Tensor(
      shape=(409, 16384)
      dtype=torch.bfloat16
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty

__all__ = ["KernelCall", "read_kernel_logs"]

_CALL = re.compile(r"SGLang Kernel API Call: (\S+)\s*$")
_ARGUMENT = re.compile(r"^  (\S+?)=(.*)$")
_SHAPE = re.compile(r"^\s+shape=\(([0-9, ]*)\)\s*$")
_DTYPE = re.compile(r"^\s+dtype=torch\.(\w+)\s*$")
_OUTPUT = "Output:"
_MOST_LINES = 5_000_000
_MOST_CALLS = 5000


class KernelCall(Model):
    """One kernel as SGLang called it; calls that differ in their rows only are one."""

    name: NonEmpty
    """As SGLang logs it, such as `elementwise.silu_and_mul`."""
    tensors: dict[str, str]
    """Argument to element type and lengths after the first: `bfloat16[*, 16384]`."""
    values: dict[str, str] = Field(default_factory=dict)
    """Arguments that are no tensors."""


def read_kernel_logs(paths: Iterable[Path]) -> tuple[KernelCall, ...]:
    """Read which kernels ran, each once; a log that is cut off, as of a process that was killed, is read as far as it goes."""
    found: dict[str, KernelCall] = {}
    for path in sorted(paths):
        for call in _read(path):
            found.setdefault(call.model_dump_json(), call)
            if len(found) >= _MOST_CALLS:
                return tuple(found.values())
    return tuple(found.values())


def _read(path: Path) -> Iterator[KernelCall]:
    name: str | None = None
    lines: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in itertools.islice(stream, _MOST_LINES):
            match = _CALL.search(line)
            if match is None:
                lines.append(line.rstrip("\n"))
                continue
            if name is not None:
                yield _parse(name, lines)
            name, lines = match[1], []
    if name is not None:
        yield _parse(name, lines)


def _parse(name: str, lines: Iterable[str]) -> KernelCall:
    tensors: dict[str, str] = {}
    values: dict[str, str] = {}
    argument, shape = "", ""
    for line in lines:
        if line.startswith(_OUTPUT):
            break
        if (match := _ARGUMENT.match(line)) is not None:
            argument = match[1]
            if not match[2].startswith("Tensor("):
                values[argument] = match[2][:80]
        elif (match := _SHAPE.match(line)) is not None:
            lengths = [part.strip() for part in match[1].split(",") if part.strip()]
            shape = ", ".join(["*", *lengths[1:]]) if lengths else ""
        elif (match := _DTYPE.match(line)) is not None and argument not in tensors:
            tensors[argument] = f"{match[1]}[{shape}]"
    return KernelCall(name=name, tensors=tensors, values=values)
