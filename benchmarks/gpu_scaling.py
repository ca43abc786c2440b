"""`fib bench` on one GPU and on several: how much sooner it ends, and whether the figures stay what they were.

python benchmarks/gpu_scaling.py --out FOLDER [--gpus 2] [--repeats 1] [--again]

The dataset is side_by_side.py's in five widths of each kernel, with sixteen Workloads: 1,600 evaluations. Beside the wall
time stands the time from the first result to the last, without the start of processes. A figure on several GPUs is set
against the one on a single GPU; what figures differ by anyway is told by twins, and by a second run on a single GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine
from side_by_side import Times, read_traces
from side_by_side_dataset import TWIN, write_dataset

ROOT = Path(__file__).resolve().parents[1]
ROWS = (*(2**power for power in range(13)), 96, 384, 1536)
KERNELS = tuple(
    (kernel, {axis: width})
    for kernel, axis in (
        ("rmsnorm", "hidden_size"),
        ("fused_add_rmsnorm", "hidden_size"),
        ("layernorm", "hidden_size"),
        ("silu_and_mul", "intermediate_size"),
        ("gelu_and_mul", "intermediate_size"),
    )
    for width in (1024, 2048, 4096, 5120, 7168)
)
VERSIONS = ("torch", "triton")
_RESULT = re.compile(r"^\[ *([0-9.]+) s\] .+ on .+: (?:[A-Z_]+|failed) [0-9]+/[0-9]+$", re.MULTILINE)
"""A line of progress that tells how an evaluation ended."""


@dataclass(kw_only=True)
class Run:
    """What one run took, and found."""

    gpus: int
    seconds: float
    measuring: float
    """Seconds from the first result to the last."""
    times: Times


def run(options: argparse.Namespace, gpus: int, number: int) -> Run:
    """Evaluate a fresh copy of the dataset."""
    root = options.out / f"run{number}"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(options.out / "dataset", root)
    command = [sys.executable, "-m", "fib_tools", "bench", "--dataset", str(root), "--workspace", f"{root}-work"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    log = options.out / f"run{number}.log"
    begun = time.perf_counter()
    with log.open("wb") as stream:
        subprocess.run([*command, "--gpus", str(gpus)], stdout=stream, stderr=stream, check=True, env=environment)
    seconds = time.perf_counter() - begun
    times, ends = read_traces(root)
    print(f"{gpus} GPUs: {seconds:.1f} s, {ends}", file=sys.stderr, flush=True)
    return Run(gpus=gpus, seconds=seconds, measuring=find_measuring_seconds(log.read_text()), times=times)


def find_measuring_seconds(log: str) -> float:
    """Find the seconds from the first result to the last that a run's progress tells of."""
    moments = [float(said) for said in _RESULT.findall(log)]
    return moments[-1] - moments[0] if moments else 0.0


def compare(base: Times, other: Times) -> str:
    """Say how far the figures of two runs are apart."""
    apart = sorted(100 * abs(other[key] / base[key] - 1) for key in base.keys() & other.keys())
    return (
        f"{len(apart)} figures, apart by {statistics.median(apart):.2f}% in the median, {apart[len(apart) * 9 // 10]:.2f}%"
        f" at 90%, {apart[-1]:.2f}% at most"
    )


def part_twins(times: Times) -> tuple[Times, Times]:
    """Give the times of the Solutions that have a twin, and those of the twins under the same names."""
    twins = {(name.replace(TWIN, "triton"), uuid): value for (name, uuid), value in times.items() if TWIN in name}
    return {key: times[key] for key in twins if key in times}, twins


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for datasets, logs and results")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="a single GPU once more at the end")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    evaluations = write_dataset(options.out / "dataset", ROWS, KERNELS)
    counts = [count for _ in range(options.repeats) for count in (1, options.gpus)] + [1] * options.again
    runs = [run(options, gpus, number) for number, gpus in enumerate(counts)]
    lines = [f"{options.gpus} x {describe_machine(VERSIONS)}; {evaluations} evaluations"]
    middle = {}
    for gpus in (1, options.gpus):
        mine = [each for each in runs if each.gpus == gpus]
        middle[gpus] = [
            statistics.median(values) for values in zip(*((r.seconds, r.measuring) for r in mine), strict=True)
        ]
        said = ", ".join(f"{each.seconds:.1f}" for each in mine)
        lines.append(f"{gpus} GPUs: {said} s; from the first result to the last {middle[gpus][1]:.1f} s")
    whole, measuring = (one / several for one, several in zip(middle[1], middle[options.gpus], strict=True))
    lines.append(f"ratio {whole:.2f}; of the time from the first result to the last {measuring:.2f}")
    lines.append(f"one GPU and {options.gpus}: {compare(runs[0].times, runs[1].times)}")
    lines += [f"twins, {each.gpus} GPUs: {compare(*part_twins(each.times))}" for each in runs[:2]]
    if options.again:
        lines.append(f"one GPU and one GPU: {compare(runs[0].times, runs[-1].times)}")
    text = "\n".join(lines)
    (options.out / "gpu_scaling.txt").write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
