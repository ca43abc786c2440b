"""A GPU's clocks, power and driver, as NVML tells them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fib_tools.errors import MissingDependencyError
from fib_tools.host.gpus import load_nvml

__all__ = ["ClockReader", "Reading"]

_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown",
    0x80: "power brake",
}
"""nvmlClocksEventReason...: those that hold the clocks below what was asked for (nvml.h)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The state of a GPU at one moment."""

    sm_mhz: int = 0
    memory_mhz: int = 0
    watts: float = 0.0
    throttle: str = ""
    """Why the driver holds the clocks down, if it does."""


class ClockReader:
    """Keeps NVML open for one GPU."""

    def __init__(self, uuid: str) -> None:
        """Find the GPU.

        Raises:
            MissingDependencyError: NVML's bindings are not installed, or the driver does not answer.
        """
        nvml = load_nvml()
        if nvml is None:
            raise MissingDependencyError(
                "nvidia-ml-py", purpose="reading a GPU's clocks", install="pip install nvidia-ml-py"
            )
        self._nvml = nvml
        try:
            nvml.nvmlInit()
            self._handle: Any = nvml.nvmlDeviceGetHandleByUUID(uuid)
        except nvml.NVMLError as error:
            raise MissingDependencyError(
                "NVML", purpose=f"reading the clocks of {uuid} ({error})", install="check the driver with nvidia-smi"
            ) from error

    @property
    def driver(self) -> str:
        """The driver's version."""
        return str(self._nvml.nvmlSystemGetDriverVersion())

    def read(self) -> Reading:
        """Read what the GPU tells; what it does not tell is 0."""
        nvml = self._nvml
        values: dict[str, Any] = {}
        with suppress(nvml.NVMLError):
            values["sm_mhz"] = int(nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM))
            values["memory_mhz"] = int(nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_MEM))
        with suppress(nvml.NVMLError):
            values["watts"] = nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
        with suppress(nvml.NVMLError):
            bits = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))
            values["throttle"] = ", ".join(text for bit, text in _REASONS.items() if bits & bit)
        return Reading(**values)
