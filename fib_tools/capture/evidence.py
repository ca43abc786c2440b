"""Calls outside of FlashInfer's traces: what the hook watched, and what SGLang logged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fib_tools.capture.kernel_log import read_kernel_logs
from fib_tools.host.files import read_limited
from fib_tools.model.base import Model, NonEmpty

__all__ = ["OtherCall", "read_other_calls"]

_LIMIT = 64 << 20


class OtherCall(Model):
    """A kernel that ran without FlashInfer's trace of it."""

    kernel: NonEmpty
    """`torch.linear`, `sglang.kernels.ops.activation.activation.silu_and_mul`, or SGLang's short name of it."""
    run: str
    weight: tuple[int, ...] = ()
    """The lengths of a product's second factor."""
    bias: bool = False
    tensors: dict[str, str] = Field(default_factory=dict)
    """Argument to element type and lengths: `bfloat16[*, 16384]`."""
    count: int = 1

    def describe(self) -> str:
        """Say with what it was called."""
        if self.weight:
            return f"weight {list(self.weight)}"
        return ", ".join(f"{name}: {text}" for name, text in list(self.tensors.items())[:4])


def read_other_calls(folder: Path, *, run: str) -> tuple[OtherCall, ...]:
    """Read the calls of one run that no trace shows; lines cut off by a kill are passed over."""
    found = [call for path in sorted((folder / "calls").glob("*.jsonl")) for call in _read(path, run)]
    logged = read_kernel_logs((folder / "kernels").glob("*.log"))
    found += [OtherCall(kernel=call.name, run=run, tensors=call.tensors) for call in logged]
    return tuple({call.model_copy(update={"count": 1}).model_dump_json(): call for call in found}.values())


def _read(path: Path, run: str) -> Iterator[OtherCall]:
    for line in read_limited(path, _LIMIT).splitlines():
        try:
            entry: Any = json.loads(line)
            if isinstance(entry, dict) and "kernel" in entry:
                yield _parse(entry, run)
        except (ValueError, ValidationError, KeyError, TypeError):
            continue


def _parse(entry: dict[str, Any], run: str) -> OtherCall:
    weight = [int(length) for length in entry.get("weight", ())]
    return OtherCall(
        kernel=entry["kernel"],
        run=run,
        weight=tuple(weight),
        bias=bool(entry.get("bias")),
        tensors=entry.get("tensors", {}),
        count=int(entry.get("count", 1)),
    )
