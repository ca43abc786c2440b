"""`fib bench` on one GPU and on several: how much sooner it ends, and whether the figures stay what they were.

python benchmarks/gpu_scaling.py --out FOLDER [--gpus 2] [--repeats 1]

The dataset is side_by_side.py's with two dozen Workloads: 576 evaluations. Beside the wall time stands the time from the
first result to the last, without the start of processes. A figure on several GPUs is set against the one on a single GPU,
and a second run on a single GPU says how much figures differ anyway.
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
from side_by_side_dataset import write_dataset

ROOT = Path(__file__).resolve().parents[1]
ROWS = sorted({size for power in range(13) for size in (2**power, 3 * 2**power)} - {6144, 8192, 12288})
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


def compare(base: Run, other: Run) -> str:
    """Say how far the figures of two runs are apart."""
    apart = sorted(100 * abs(other.times[key] / base.times[key] - 1) for key in base.times.keys() & other.times.keys())
    return (
        f"{len(apart)} figures, apart by {statistics.median(apart):.2f}% in the median, {apart[len(apart) * 9 // 10]:.2f}%"
        f" at 90%, {apart[-1]:.2f}% at most"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for datasets, logs and results")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    evaluations = write_dataset(options.out / "dataset", ROWS)
    counts = [count for _ in range(options.repeats) for count in (1, options.gpus)] + [1]
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
    lines.append(f"one GPU and one GPU: {compare(runs[0], runs[-1])}")
    lines.append(f"one GPU and {options.gpus}: {compare(runs[0], runs[1])}")
    text = "\n".join(lines)
    (options.out / "gpu_scaling.txt").write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
