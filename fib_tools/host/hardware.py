"""The model of the device that computes: a GPU of this machine, or its CPU."""

from __future__ import annotations

from fib_tools.host.cpu import read_cpu_name
from fib_tools.host.env import read_gpu_settings
from fib_tools.host.gpus import discover_gpus

__all__ = ["NO_GPU", "find_hardware"]

NO_GPU = "no GPU"
"""In place of a model."""


def find_hardware(device: str) -> tuple[str, int]:
    """Find the model of the device and its compute capability, which is 0 for a CPU, and where there is no GPU."""
    if device == "cpu":
        return read_cpu_name(), 0
    found = discover_gpus(read_gpu_settings()).visible
    return (found[0].name, found[0].capability) if found else (NO_GPU, 0)
