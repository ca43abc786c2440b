"""The GPU as the harness uses it around calls: flush, spin, markers, clocks of the cache."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fib_tools.errors import RequestError

__all__ = ["Gpu"]

_SPIN_CYCLES_PER_MICROSECOND = 1980
"""At the boost clock of Hopper; a GPU that runs slower spins a little longer."""
_PERSISTING_L2 = 0x06
"""CU_LIMIT_PERSISTING_L2_CACHE_SIZE (cuda.h)."""


class Gpu:
    """The current device of this process; its context is made here."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RequestError("torch sees no GPU in the runner", todo="check CUDA_VISIBLE_DEVICES and the driver")
        self._driver = ctypes.CDLL("libcuda.so.1")
        torch.cuda.init()
        self.properties = torch.cuda.get_device_properties(0)
        self.l2_bytes = int(self.properties.L2_cache_size)
        self._flushed = torch.empty(max(2 * self.l2_bytes, 1 << 20), dtype=torch.int8, device="cuda")
        self._mark = torch.zeros(1, dtype=torch.int32, device="cuda")
        self._capturing = torch.cuda.Stream()
        self._flushes: dict[int, torch.cuda.CUDAGraph] = {}
        self.reset_persisting_l2()
        self._least_persisting = self._read_persisting_l2()
        torch.cuda.synchronize()

    @property
    def capability(self) -> int:
        """Major times ten plus minor."""
        return int(self.properties.major) * 10 + int(self.properties.minor)

    def synchronize(self) -> None:
        """Wait until the device has nothing to do."""
        torch.cuda.synchronize()

    def flush(self) -> None:
        """Write twice the L2's size, so that a call finds none of its data there."""
        self.reset_persisting_lines()
        self.write_over_cache()

    def reset_persisting_lines(self) -> None:
        """Make lines of the L2 that were to stay ordinary ones."""
        self._driver.cuCtxResetPersistingL2Cache()

    def write_over_cache(self) -> None:
        """Write twice the L2's size; a graph can hold this."""
        self._flushed.zero_()

    @contextmanager
    def capture(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Capture in a graph what is launched meanwhile.

        torch's own way gives all cached memory back to the driver first, and asks for it again right after: milliseconds
        for each of many small graphs.
        """
        self._capturing.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._capturing):
            graph.capture_begin()
            try:
                yield
            finally:
                graph.capture_end()

    def capture_flushes(self, count: int) -> torch.cuda.CUDAGraph:
        """Give a graph that writes over the L2 so many times; it is captured once."""
        if count not in self._flushes:
            graph = torch.cuda.CUDAGraph()
            with self.capture(graph):
                for _ in range(count):
                    self.write_over_cache()
            graph.replay()  # the first launch of a graph is slow
            self._flushes[count] = graph
        return self._flushes[count]

    def spin(self, microseconds: float) -> None:
        """Keep the device busy while the host queues what comes next."""
        torch.cuda._sleep(int(microseconds * _SPIN_CYCLES_PER_MICROSECOND))  # noqa: SLF001  # it has no public name

    def mark(self) -> int:
        """Queue a memset to a number that nobody can know beforehand, and give the number."""
        number = secrets.randbits(32)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        target = ctypes.c_void_p(self._mark.data_ptr())
        self._driver.cuMemsetD32Async(target, ctypes.c_uint(number), ctypes.c_size_t(1), stream)
        return number

    def persisting_l2_bytes(self) -> int:
        """Tell how much more of the L2 is set aside for data that stays than there was at the start."""
        return self._read_persisting_l2() - self._least_persisting

    def _read_persisting_l2(self) -> int:
        size = ctypes.c_size_t(0)
        self._driver.cuCtxGetLimit(ctypes.byref(size), _PERSISTING_L2)
        return size.value

    def reset_persisting_l2(self) -> None:
        """Set no more of the L2 aside than the driver insists on."""
        self._driver.cuCtxSetLimit(_PERSISTING_L2, ctypes.c_size_t(0))
