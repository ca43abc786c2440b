"""How soon a graph starts its kernels, while the GPU is one process's own and after another has used it.

python benchmarks/graph_starts.py

Each line: what was done just before; the clock by a spin of known cycles, before and after; microseconds of an RMSNorm of
some ten kernels in a graph of twelve calls, each behind a flush of the L2 (A) or all behind one (B), replays queued one
behind the other; the same by side_by_side.py's yardstick, one replay at a time; and what NVML says.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # the path must be there first
from side_by_side import time_graphs  # noqa: E402

from fib_tools.evaluate._runner.gpu import Gpu  # noqa: E402

CALLS, REPLAYS = 12, 32
NEIGHBOUR = "import sys, torch; torch.zeros(1, device='cuda'); print('up', flush=True); sys.stdin.read()"
TICKING = """
import time, torch
value = torch.zeros(1 << 20, device="cuda")
print("up", flush=True)
while True:
    value.add_(1)
    torch.cuda.synchronize()
    time.sleep(0.01)
"""


class Probe:
    """The graphs, and what they take."""

    def __init__(self) -> None:
        import pynvml  # of the extra `gpu`

        self.gpu, self.nvml = Gpu(), pynvml
        self.flushed: Any = self.gpu._flushed  # noqa: SLF001  # the same bytes as the evaluator writes
        weight = torch.randn(7168, device="cuda").bfloat16()
        row = torch.randn(1, 7168, device="cuda").bfloat16()
        self.sets = [(torch.randn_like(row), torch.randn_like(weight)) for _ in range(CALLS)]
        norm(*self.sets[0])
        flush = self.flushed.zero_
        self.each = (
            capture(lambda: [(flush(), norm(*one)) for one in self.sets]),
            capture(lambda: [flush() for _ in self.sets]),
        )
        self.once = capture(lambda: (flush(), [norm(*one) for one in self.sets])), capture(flush)
        self.nvml.nvmlInit()
        self.handle = self.nvml.nvmlDeviceGetHandleByIndex(0)

    def show(self, what: str) -> None:
        """Measure, and print a line."""
        before = self.clock()
        each, once = self.time(*self.each), self.time(*self.once)
        alone = 1e3 * time_graphs(norm, list(self.sets[0]), self.flushed, lambda: None)
        sm = self.nvml.nvmlDeviceGetClockInfo(self.handle, self.nvml.NVML_CLOCK_SM)
        watts = self.nvml.nvmlDeviceGetPowerUsage(self.handle) / 1000
        print(
            f"{what:24} MHz {before:.0f} {self.clock():.0f}  A {each:.3f}  B {once:.3f}  one at a time {alone:.3f}"
            f"  NVML: {sm} MHz, {watts:.0f} W",
            flush=True,
        )

    def time(self, calls: Any, flushes: Any) -> float:
        """Give the microseconds of a call."""
        torch.cuda.synchronize()
        self.gpu.spin(300)
        pairs: dict[bool, list[tuple[Any, Any]]] = {True: [], False: []}
        for number in range(REPLAYS):
            for is_call in (True, False) if number % 4 == 0 else (True,):
                events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
                events[0].record()
                (calls if is_call else flushes).replay()
                events[1].record()
                pairs[is_call].append((events[0], events[1]))
        torch.cuda.synchronize()
        whole, rest = (statistics.median(a.elapsed_time(b) for a, b in pairs[kind]) for kind in (True, False))
        return 1e3 * (whole - rest) / CALLS

    def clock(self) -> float:
        """Give the MHz at which a spin of a million cycles ran."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda.synchronize()
        torch.cuda._sleep(20_000)  # noqa: SLF001  # it has no public name
        events[0].record()
        torch.cuda._sleep(990_000)  # noqa: SLF001
        events[1].record()
        torch.cuda.synchronize()
        return 990 / float(events[0].elapsed_time(events[1]))


def norm(row: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute an RMSNorm as torch does it step by step."""
    value = row.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (value * weight.float()).bfloat16()


def capture(work: Any) -> Any:
    """Capture a graph, and replay it once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def start(code: str) -> subprocess.Popen[str]:
    """Start another process, and wait until it has a context."""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdout is not None:
        process.stdout.readline()
    return process


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    probe = Probe()
    print(
        f"{torch.cuda.get_device_name()}, driver {probe.nvml.nvmlSystemGetDriverVersion()}, torch {torch.__version__}"
    )
    probe.show("alone")
    probe.show("alone")
    neighbour = start(NEIGHBOUR)
    for what in ("another context was made", "then", "then", "then"):
        probe.show(what)
    neighbour.kill()
    neighbour.wait()
    probe.show("it was ended")
    time.sleep(1)
    probe.show("a second later")
    probe.show("then")
    ticking = start(TICKING)
    for _ in range(3):
        probe.show("another one ticks")
    ticking.kill()
    ticking.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
