"""Measure what FlashInfer's trace_apply costs a call: dispatched to a Solution, and falling back.

    python benchmarks/apply_dispatch.py [--calls 2000] [--rounds 15]

The Solution does nothing, so that what is left is the dispatch: binding arguments, reading axes, computing the name, a
lookup, a counter. `entry` is the same through the entry that fib apply writes. Budget: 1 us median. On a CPU the original
kernel cannot run, so a no-op stands in for it; with a GPU a call is also captured in a CUDA graph and replayed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fib_tools.evaluate.application.application import find_interface, make_application
from fib_tools.model.solution import BuildSpec, Language, Solution, SourceFile
from fib_tools.op_types.registry import get_kernel_type

BUDGET = 1.0
DEFINITION = get_kernel_type("rmsnorm").build({"hidden_size": 64})


def measure(call: Callable[[], Any], calls: int, rounds: int) -> float:
    """Give the median over rounds of the mean microseconds of a call."""
    means = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        means.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(means)


def make_entry(folder: Path) -> Callable[..., Any]:
    """Load what fib apply writes around a Solution that does nothing."""
    spec = BuildSpec(
        language=Language.PYTHON,
        target_hardware=["sm90"],
        entry_point="main.py::run",
        destination_passing_style=False,
    )
    source = SourceFile(path="main.py", content="def run(x, w):\n    return x\n")
    solution = Solution(name="nothing", definition=DEFINITION.name, author="me", spec=spec, sources=[source])
    raw = {"inputs": {"hidden_states": {}, "weight": {}}, "outputs": {"output": {}}}
    interface = find_interface(DEFINITION, DEFINITION.name, raw)
    made = make_application(DEFINITION, solution, interface, "flashinfer.norm.rmsnorm").solution
    for file in made.sources:
        (folder / file.path).write_text(file.content, encoding="utf-8")
    namespace: dict[str, Any] = {"__file__": str(folder / "fib_apply.py"), "__name__": "entry"}
    exec(compile((folder / "fib_apply.py").read_text(encoding="utf-8"), "fib_apply.py", "exec"), namespace)  # noqa: S102
    return namespace["run"]


def replay(call: Callable[[], Any]) -> str:
    """Capture a dispatched call in a CUDA graph and replay it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    torch.cuda.synchronize()
    return "a dispatched call was captured in a CUDA graph and replayed"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import flashinfer
    from flashinfer import trace_apply

    has_gpu = torch.cuda.is_available()
    device = "cuda" if has_gpu else "cpu"
    if not has_gpu:
        torch.cuda.is_current_stream_capturing = lambda: False  # a torch without CUDA refuses to be asked
        flashinfer.norm.rmsnorm = lambda *_args, **_kwargs: None
    x, other = (torch.ones(3, size, dtype=torch.bfloat16, device=device) for size in (64, 96))
    w, other_w = (torch.ones(size, dtype=torch.bfloat16, device=device) for size in (64, 96))

    def take(hidden_states: Any, weight: Any) -> Any:
        del weight
        return hidden_states

    timed: dict[str, float] = {}

    def time_one(name: str, call: Callable[[], Any]) -> None:
        timed[name] = measure(call, options.calls, options.rounds)

    time_one("the original, not patched", lambda: flashinfer.norm.rmsnorm(other, other_w))
    time_one("the Solution alone", lambda: take(hidden_states=x, weight=w))
    trace_apply.enable_apply({"rmsnorm_h64": take})
    time_one("dispatched", lambda: flashinfer.norm.rmsnorm(x, w))
    time_one("falling back", lambda: flashinfer.norm.rmsnorm(other, other_w))
    hits = trace_apply.stats()["flashinfer.norm.rmsnorm"]["hit"]
    captured = replay(lambda: flashinfer.norm.rmsnorm(x, w)) if has_gpu else "no GPU: graphs were not tried"
    trace_apply.disable_apply()
    with tempfile.TemporaryDirectory() as folder:
        entry = make_entry(Path(folder))
        time_one("the entry alone", lambda: entry(hidden_states=x, weight=w))
        trace_apply.enable_apply({"rmsnorm_h64": entry})
        time_one("dispatched to the entry", lambda: flashinfer.norm.rmsnorm(x, w))
        trace_apply.disable_apply()
    packages = ", ".join(f"{name} {version(name)}" for name in ("flashinfer-python", "torch"))
    where = torch.cuda.get_device_name() if has_gpu else platform.processor() or platform.machine()
    print(f"{packages}, python {platform.python_version()}, {where}")
    print(*(f"{name:28s} {microseconds:8.2f} us" for name, microseconds in timed.items()), sep="\n")
    cost = timed["dispatched"] - timed["the Solution alone"]
    passing = timed["falling back"] - timed["the original, not patched"]
    own = timed["the entry alone"] - timed["the Solution alone"]
    print(
        f"FlashInfer's dispatch costs {cost:.2f} us, its fall-back {passing:.2f} us, our entry {own:.2f} us; {captured}"
    )
    print(f"{hits} calls were counted as dispatched, of {options.calls * options.rounds}")
    print(f"budget {BUDGET} us: {'kept' if cost <= BUDGET else 'exceeded, by FlashInfer itself'}")


if __name__ == "__main__":
    sys.exit(main())
