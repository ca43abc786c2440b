"""What a report of Nsight Compute says of a kernel, in a few figures.

It is read as `ncu --csv --page raw --print-units base` writes it (Nsight Compute 2025.3): lines of its own begin with `==`,
then names of columns, their units, and a line for each kernel.

"ID","Process ID",...,"Kernel Name",...,"gpu__time_duration.sum","launch__registers_per_thread",...
"","",...,"",...,"ns","register/thread",...
"0","4242",...,"rmsnorm_kernel",...,"12,352.00","32",...
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping

from fib_tools.model.base import Model

__all__ = ["KernelCounters", "explain_failure", "read_report"]

_NAME = re.compile(r"[^\w<>:,.() -]")
_NAME_LENGTH = 48
_MOST_KERNELS = 64
_REASON_LENGTH = 200
_DURATION = "gpu__time_duration.sum"
_PERCENTS = {
    "dram": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "l2": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "most_occupancy": "sm__maximum_warps_per_active_cycle_pct",
}
_REGISTERS = "launch__registers_per_thread"
_SHARED = ("launch__shared_mem_per_block_static", "launch__shared_mem_per_block_dynamic")
_LIMIT = re.compile(r"launch__occupancy_limit_([a-z_]{1,32})")
_STALL = re.compile(r"smsp__average_warps_issue_stalled_([a-z_]{1,32}?)(?<!_not_issued)_per_issue_active\.ratio")
_ISSUED = ("selected", "not_selected")
"""No stalls: the warp was issued, or another one was."""
_SAID = re.compile(r"^==(?:ERROR|WARNING)== *(.*)$", re.MULTILINE)
_PERMISSION = "ERR_NVGPUCTRPERM"
_TOO_OLD = "unrecognised option '--communicator'"
"""The option that keeps it from sockets."""


class KernelCounters(Model):
    """One kernel of a call; what a report does not have is None."""

    name: str
    microseconds: float
    dram: float | None = None
    """Percent of the peak rate, as are those after it."""
    l2: float | None = None
    sm: float | None = None
    occupancy: float | None = None
    """Percent of the warps that an SM can hold, as it was."""
    most_occupancy: float | None = None
    """As the launch allows."""
    limiter: str = ""
    """What allows no more."""
    registers: int | None = None
    """Of a thread."""
    shared_bytes: int | None = None
    """Of a block, as the kernel asked for."""
    stall: str = ""
    """What warps wait for most."""
    stall_share: float | None = None
    """Of the cycles between two instructions of a warp."""


def read_report(text: str) -> tuple[KernelCounters, ...]:
    """Read the kernels of a report, in order; none if it has none. Its author is not trusted: what is odd is left out."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        return ()
    try:
        rows = list(csv.reader(lines[: 2 + _MOST_KERNELS]))
    except csv.Error:
        return ()
    head = rows[0]
    found = (_read_kernel(dict(zip(head, row, strict=False))) for row in rows[2:] if len(row) == len(head))
    return tuple(kernel for kernel in found if kernel is not None)


def _read_kernel(row: Mapping[str, str]) -> KernelCounters | None:
    nanoseconds = _read_number(row.get(_DURATION))
    if nanoseconds is None:
        return None
    shared = [_read_number(row.get(name)) for name in _SHARED]
    registers = _read_number(row.get(_REGISTERS))
    percents = {field: _read_number(row.get(name)) for field, name in _PERCENTS.items()}
    stall, share = _find_stall(row)
    return KernelCounters(
        name=_NAME.sub("", row.get("Kernel Name", ""))[:_NAME_LENGTH] or "unnamed",
        microseconds=nanoseconds / 1e3,
        limiter=_find_limiter(row, percents["most_occupancy"]),
        registers=None if registers is None else int(registers),
        shared_bytes=None if None in shared else int(sum(value or 0.0 for value in shared)),
        stall=stall,
        stall_share=share,
        **percents,
    )


def _read_number(text: str | None) -> float | None:
    """Read a number with or without commas between thousands; `n/a` and what is none give None."""
    try:
        value = float((text or "").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value < 1e15 else None


def _find_limiter(row: Mapping[str, str], most: float | None) -> str:
    if most is not None and most >= 100:
        return ""
    limits = {
        found[1]: value
        for name, text in row.items()
        if (found := _LIMIT.fullmatch(name)) and (value := _read_number(text))
    }
    if not limits:
        return ""
    least = min(limits.values())
    names = [name.replace("_", " ").replace("mem", "memory") for name, value in limits.items() if value == least]
    return ", ".join(names)[:_NAME_LENGTH]


def _find_stall(row: Mapping[str, str]) -> tuple[str, float | None]:
    cycles = {
        found[1]: value
        for name, text in row.items()
        if (found := _STALL.fullmatch(name)) and (value := _read_number(text))
    }
    stalls = {name: value for name, value in cycles.items() if name not in _ISSUED}
    if not stalls:
        return "", None
    worst = max(stalls, key=stalls.__getitem__)
    return worst.replace("_", " "), stalls[worst] / sum(cycles.values())


def explain_failure(text: str) -> str:
    """Say why ncu gave no figures, from what it said."""
    if _PERMISSION in text:
        return (
            f"this user may not read the GPU's counters ({_PERMISSION}); an administrator can permit it for all users"
            " (NVreg_RestrictProfilingToAdminUsers=0)"
        )
    if _TOO_OLD in text:
        return (
            "this ncu is too old for the sandbox: it speaks with its target through sockets only, which the filter there"
            " does not know; install a newer Nsight Compute"
        )
    said = _SAID.findall(text)
    words = said[0] if said else text.strip().rpartition("\n")[2]
    return f"it saw no kernel{': ' if words else ''}{words}"[:_REASON_LENGTH]
