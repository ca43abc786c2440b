"""The CPU of this machine, by name."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["count_cores", "read_cpu_name", "read_memory_bytes"]

_CPUINFO = Path("/proc/cpuinfo")


def read_cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """Give the processor's model as Linux tells it, else its architecture."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name"))
    return next(filter(None, named), "") or platform.processor() or platform.machine() or "CPU"


def read_memory_bytes() -> int:
    """Tell how much memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))
