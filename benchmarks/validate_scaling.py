"""Validate synthetic datasets of 1x and 10x the published size, beside flashinfer-bench's own load of the same files.

    python benchmarks/validate_scaling.py [--scale 1 10]

Each figure is a whole process: wall seconds and peak memory, median of the runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from fib_tools.dataset.store import Dataset
from fib_tools.model.definition import Definition
from fib_tools.model.trace import Trace
from fib_tools.model.workload import RandomInput, ScalarInput, Workload, workload_uuid
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.registry import get_kernel_type

DEFINITIONS = 156
WORKLOADS = 663
FAMILIES = (
    ("rmsnorm", lambda size: {"hidden_size": size}),
    ("fused_add_rmsnorm", lambda size: {"hidden_size": size}),
    ("gemm", lambda size: {"n": size, "k": 4096}),
    ("gqa_paged_decode", lambda size: {"num_qo_heads": size, "num_kv_heads": size, "head_dim": 128, "page_size": 1}),
    ("mla_paged_decode", lambda size: {"num_qo_heads": size, "page_size": 1, "sm_scale": 0.0721688}),
)
PEER = "import sys; from flashinfer_bench.data import TraceSet; print(len(TraceSet.from_path(sys.argv[1]).definitions))"


def build(root: Path, scale: int) -> None:
    dataset = Dataset(root)
    total = DEFINITIONS * scale
    for index in range(total):
        kernel, parameters = FAMILIES[index % len(FAMILIES)]
        definition = get_kernel_type(kernel).build(parameters(64 * (index // len(FAMILIES) + 1)))
        dataset.write_definition(definition.model_copy(update={"tags": ["status:unverified"]}))
        count = WORKLOADS * scale * (index + 1) // total - WORKLOADS * scale * index // total
        dataset.write_workloads(definition.op_type, [workload(definition, number) for number in range(count)])


def workload(definition: Definition, number: int) -> Trace:
    axes = {name: size for name, size in choose_axes(definition).items() if name in definition.var_axes}
    free = next(name for name in ("batch_size", "num_rows", "M", "m", *axes) if name in axes)
    axes = {name: size for name, size in choose_axes(definition, {free: 5 + number}).items() if name in axes}
    inputs = {
        name: RandomInput() if spec.shape is not None else ScalarInput(value=1.0)
        for name, spec in definition.inputs.items()
    }
    uuid = workload_uuid(definition.name, axes, inputs)
    return Trace(definition=definition.name, workload=Workload(axes=axes, inputs=inputs, uuid=uuid))


def measure(command: list[str], runs: int) -> tuple[float, float, int]:
    """Median wall seconds and peak memory (MiB) of a command, and its exit status."""
    seconds, memory, status = [], [], 0
    for _ in range(runs + 1):
        began = time.perf_counter()
        child = os.posix_spawn(
            command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        )
        _, code, usage = os.wait4(child, 0)
        seconds.append(time.perf_counter() - began)
        memory.append(usage.ru_maxrss / 1024)
        status = os.waitstatus_to_exitcode(code)
    return statistics.median(seconds[1:]), max(memory[1:]), status


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print(f"python {platform.python_version()}, flashinfer-bench {version('flashinfer-bench')}, {os.cpu_count()} cores")
    print("definitions workloads |   fib validate s    MiB |    peer load s    MiB | times faster")
    for scale in options.scale:
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder), scale)
            ours = measure(
                [sys.executable, "-m", "fib_tools", "validate", "--dataset", folder, "--quiet", "--json"], options.runs
            )
            theirs = measure([sys.executable, "-c", PEER, folder], options.runs)
        print(
            f"{DEFINITIONS * scale:11d} {WORKLOADS * scale:9d} | {ours[0]:16.2f} {ours[1]:6.0f} |"
            f" {theirs[0]:14.2f} {theirs[1]:6.0f} | {theirs[0] / ours[0]:.1f}   (exit {ours[2]}, {theirs[2]})"
        )


if __name__ == "__main__":
    main()
