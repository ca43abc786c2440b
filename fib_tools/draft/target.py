"""What is to be made fast, and on what: the facts that a brief is written from."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from fib_tools.evaluate.engines.items import Bound
from fib_tools.model.base import Model
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Language
from fib_tools.model.weights import find_weights, is_weighted

__all__ = ["Shape", "Target", "format_axes", "format_us", "list_gpu_facts"]


class Shape(Model):
    """One Workload, and what is known of it before anything is drafted."""

    workload: str
    axes: dict[str, int]
    count: int | None = None
    """How often it occurs, as its Workload says."""
    limit_ms: float | None = None
    """What this device needs at least, by its own measured rates."""
    bound: str = ""
    """`memory` or `compute`."""
    bytes: int = 0
    """0: nobody could count them, nor the next."""
    flops: int = 0
    baseline_ms: float | None = None
    reference_ms: float | None = None


class Target(Model):
    """A Definition on a device."""

    definition: Definition
    language: Language
    hardware: str
    capability: int = 0
    """Major times ten plus minor; 0 on a CPU."""
    bounds: dict[str, Bound]
    """How near each output must come."""
    shapes: tuple[Shape, ...]
    baseline: str = ""
    """What the baseline calls."""
    bandwidth: float = 0.0
    """Measured bytes per second of a copy, read plus written."""
    flops_per_second: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)
    """Of torch, triton, CUDA."""

    @property
    def is_cpu(self) -> bool:
        """Tell whether there are no streams, graphs and launches to think of."""
        return self.language is Language.PYTHON and not self.capability

    @property
    def baseline_ms(self) -> dict[str, float]:
        """The baseline's times by workload."""
        return {shape.workload: shape.baseline_ms for shape in self.shapes if shape.baseline_ms}

    def take_reference_times(self, times: Mapping[str, float]) -> Target:
        """Take the reference's times by workload, where they are not known yet."""
        shapes = [
            each.model_copy(update={"reference_ms": each.reference_ms or times.get(each.workload)})
            for each in self.shapes
        ]
        return self.model_copy(update={"shapes": tuple(shapes)})

    @property
    def is_weighted(self) -> bool:
        """Tell whether every Workload says how often it occurs: some counts alone do not compare with the rest."""
        return is_weighted(self._counts.values())

    @property
    def weights(self) -> dict[str, float]:
        """The share of each Workload in what occurs; the same for all where that is not known."""
        return find_weights(self._counts)

    @property
    def _counts(self) -> dict[str, int | None]:
        return {shape.workload: shape.count for shape in self.shapes}


_FACTS: dict[int, tuple[str, ...]] = {
    80: (
        "108 SMs, up to 163 KB of shared memory a block, 64 K registers an SM, 40 MB of L2",
        "cp.async from global to shared memory; mma.sync on fp16, bf16, tf32 and int8, no fp8",
    ),
    89: (
        "up to 99 KB of shared memory a block, 64 K registers an SM, 1,536 threads an SM",
        "cp.async; mma.sync on fp16, bf16, tf32, int8 and fp8 (e4m3, e5m2); no TMA, no clusters",
    ),
    90: (
        "132 SMs on H100 SXM and H200, up to 227 KB of shared memory a block, 64 K registers and 2,048 threads an SM, 50 to 60 MB of L2",
        "TMA copies whole tiles from one thread (tensor maps); clusters of up to 8 blocks share their memory",
        "wgmma needs warpgroups of 128 threads and takes B from shared memory; fp8 (e4m3, e5m2), fp16, bf16, tf32, int8",
        "loads of 16 bytes a thread; a kernel that only moves data needs some 4 MB in flight to fill the memory system",
        "a launch costs about 2 us from the host, 1 us between the kernels of a graph: fuse small steps",
    ),
    100: (
        "148 SMs, up to 227 KB of shared memory a block, 64 K registers an SM, tensor memory of 256 KB an SM",
        "tcgen05.mma from one thread, operands in shared or tensor memory; fp4 and fp6 with block scales; TMA, clusters",
    ),
}
"""By compute capability. Sources: CUDA C++ programming guide 13.0, table of technical specifications by compute capability;
PTX ISA 9.0 (wgmma, tcgen05, cp.async.bulk); launch costs measured on an H200 (benchmarks/results)."""


def list_gpu_facts(capability: int) -> tuple[str, ...]:
    """List what matters on a GPU of this capability; nothing for one that is not in the table."""
    return _FACTS.get(capability, ())


def format_axes(axes: Mapping[str, int]) -> str:
    """Write the lengths of a size."""
    return ", ".join(f"{name}={length}" for name, length in axes.items())


def format_us(milliseconds: float | None) -> str:
    """Write a time in microseconds; a dash for one that is not known."""
    return "-" if milliseconds is None else f"{1e3 * milliseconds:.4g}"
