"""The judge's own device: what it is, how fast it can be, and how its clocks stand.

Limits are measured, not read from a datasheet: a large copy for the memory, a large product for each element type.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fib_tools.host.cpu import read_cpu_name
from fib_tools.host.gpu_clocks import ClockReader
from fib_tools.model.evidence import Clocks, Gpu, Roofline
from fib_tools.op_types.work import Work

__all__ = ["Device", "Rates"]

_COPY_BYTES = 2 << 30
_COPY_SHARE = 16
"""A copy takes at most this part of the memory, twice."""
_PRODUCT = 8192
_REPEATS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What the device was seen to do."""

    bandwidth: float
    """Bytes per second of a copy, read plus written."""
    flops: Mapping[str, float] = field(default_factory=dict)
    """Operations per second of a large product, by element type."""


class Device:
    """One GPU (the current one of this process), or the CPU."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._clocks = None if kind == "cpu" else ClockReader(_uuid())
        self.gpu = Gpu(name=read_cpu_name()) if self._clocks is None else _describe(self._clocks.driver)
        self.l2_bytes = 0 if kind == "cpu" else _read_l2_bytes()
        self.total_bytes = 0 if kind == "cpu" else _read_total_bytes()
        """Of the GPU's memory."""
        self._rates: Rates | None = None

    @property
    def rates(self) -> Rates:
        """Measure the limits once; the device must have nothing else to do."""
        if self._rates is None:
            self._rates = _measure_cuda() if self.kind != "cpu" else Rates(bandwidth=0.0)
        return self._rates

    @property
    def free_bytes(self) -> int:
        """Tell how much memory outputs may take."""
        if self.kind == "cpu":
            return 4 << 30
        import torch

        return int(torch.cuda.mem_get_info()[0])

    def clocks(self, before: Clocks | None = None) -> Clocks:
        """Read the clocks; with those from before a measurement, put both together."""
        if self._clocks is None:
            return Clocks()
        now = self._clocks.read()
        if before is None:
            return Clocks(sm_before=now.sm_mhz, memory_before=now.memory_mhz)
        after = {"sm_after": now.sm_mhz, "memory_after": now.memory_mhz, "watts_after": now.watts}
        return before.model_copy(update={**after, "throttle": now.throttle})

    def floor_ms(self, work: Work | None) -> float:
        """Give the least time that the work can take: what is written may still lie in the L2 when a kernel ends."""
        if work is None or not self.rates.bandwidth:
            return 0.0
        rate = self.rates.flops.get(work.unit, 0.0)
        moved = work.read + max(0, work.written - self.l2_bytes)
        return max(1e3 * moved / self.rates.bandwidth, 1e3 * work.flops / rate if rate else 0.0)

    def roofline(self, work: Work | None, milliseconds: float) -> Roofline | None:
        """Set a time against the least that the work needs here; None where the limits are not known."""
        if work is None or not self.rates.bandwidth:
            return None
        rate = self.rates.flops.get(work.unit, 0.0)
        memory = 1e3 * work.bytes / self.rates.bandwidth
        compute = 1e3 * work.flops / rate if rate else 0.0
        limit = max(memory, compute)
        return Roofline(
            bytes=work.bytes,
            flops=work.flops,
            unit=work.unit,
            bandwidth=self.rates.bandwidth,
            flops_per_second=rate,
            limit_ms=limit,
            percent=100 * limit / milliseconds if milliseconds else 0.0,
            bound="memory" if memory >= compute else "compute",
        )


def _uuid() -> str:
    import torch

    properties: Any = torch.cuda.get_device_properties(0)
    return f"GPU-{properties.uuid}"


def _read_l2_bytes() -> int:
    import torch

    properties: Any = torch.cuda.get_device_properties(0)
    return int(properties.L2_cache_size)


def _read_total_bytes() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[1])


def _describe(driver: str) -> Gpu:
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    return Gpu(name=torch.cuda.get_device_name(0), uuid=_uuid(), driver=driver, capability=major * 10 + minor)


def _measure_cuda() -> Rates:
    import torch

    size = min(_COPY_BYTES, int(torch.cuda.mem_get_info()[0]) // _COPY_SHARE)
    bandwidth = 2 * size / _best_seconds(_copy(size))
    flops = {unit: rate for unit, product in _PRODUCTS.items() if (rate := _measure_product(product))}
    torch.cuda.empty_cache()
    return Rates(bandwidth=bandwidth, flops=flops)


def _copy(size: int) -> Callable[[], Any]:
    import torch

    source, target = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    return lambda: target.copy_(source)


def _best_seconds(work: Callable[[], Any]) -> float:
    import torch

    seconds = []
    for _ in range(_REPEATS + 2):
        first, second = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        work()
        second.record()
        second.synchronize()
        seconds.append(float(first.elapsed_time(second)) / 1e3)
    return statistics.median(seconds[2:])


def _measure_product(make: Callable[[], Callable[[], Any]]) -> float:
    """Give the operations per second of a square product; 0 where the device cannot do it."""
    try:
        return 2 * float(_PRODUCT) ** 3 / _best_seconds(make())
    except (RuntimeError, NotImplementedError, AttributeError):
        return 0.0


def _plain(dtype: str) -> Callable[[], Callable[[], Any]]:
    def make() -> Callable[[], Any]:
        import torch

        a, b = (torch.randn(_PRODUCT, _PRODUCT, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
        return lambda: a @ b

    return make


def _fp8() -> Callable[[], Any]:
    import torch

    a = torch.randn(_PRODUCT, _PRODUCT, device="cuda").to(torch.float8_e4m3fn)
    b = torch.randn(_PRODUCT, _PRODUCT, device="cuda").to(torch.float8_e4m3fn).t()
    one = torch.ones((), device="cuda")
    return lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)  # noqa: SLF001  # no public name


_PRODUCTS: Mapping[str, Callable[[], Callable[[], Any]]] = {
    "bf16": _plain("bfloat16"),
    "fp8": _fp8,
    "fp32": _plain("float32"),
}
