"""`fib bench` and flashinfer-bench on the same dataset, back to back on one GPU: speed, spread, and who is right.

python benchmarks/side_by_side.py --out DIR [--repeats 5] [--peer events:5 cupti:2]

The released flashinfer-bench 0.1.2 times with events alone (`events`). `cupti` is the same release with its timing done
by FlashInfer's bench_gpu_time_with_cupti, 10 calls before and 50 timed, their median, as its main branch does.

The yardstick is a third measurement, written here for this purpose alone: replays of a CUDA graph of calls with a cold
L2, less replays of the flushes alone. It is taken twice: in a process that has the GPU to itself, and just after another
process has used the GPU for a moment. For some 100 ms after such a change of contexts an H200 starts each kernel of a graph
0.3 us sooner, at the same clocks, and an evaluator that judges in one process what another computes always measures then.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import describe_machine
from side_by_side_dataset import ROWS, TWIN, write_dataset

ROOT = Path(__file__).resolve().parents[1]
PEER = "from flashinfer_bench.cli.main import cli; cli()"
VERSIONS = ("torch", "triton", "flashinfer-bench", "flashinfer-python", "cupti-python")
CUPTI_TIMING = """

def time_runnable(fn, args, warmup, iters, device):
    from flashinfer.testing import bench_gpu_time_with_cupti

    with _device_lock(device):
        times = bench_gpu_time_with_cupti(
            lambda *each: fn(*each), dry_run_iters=warmup, repeat_iters=iters, input_args=tuple(_clone_args(args))
        )
        return statistics.median(times)
"""
Times = dict[tuple[str, str], float]
"""Milliseconds by Solution and Workload."""


class Usage:
    """How busy the GPU is, by NVML, some twenty times a second."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    @contextmanager
    def watch(self) -> Iterator[Usage]:
        import pynvml

        pynvml.nvmlInit()
        handle, over = pynvml.nvmlDeviceGetHandleByIndex(0), threading.Event()

        def look() -> None:
            while not over.wait(0.05):
                self.samples.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()

    @property
    def share(self) -> float:
        return statistics.fmean(self.samples) / 100 if self.samples else 0.0


def run(command: list[str], log: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; give its seconds and the share of them that the GPU was busy."""
    usage = Usage()
    begun = time.perf_counter()
    with usage.watch(), log.open("wb") as stream:
        subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False, env=environment)
    return time.perf_counter() - begun, usage.share


def read_traces(root: Path) -> tuple[Times, dict[str, int]]:
    """Read what an evaluator wrote: times of what passed, and how many evaluations ended how."""
    times: Times = {}
    ends: dict[str, int] = defaultdict(int)
    for path in sorted((root / "traces").rglob("*.jsonl")):
        for line in path.read_text().splitlines():
            trace = json.loads(line)
            if not trace.get("solution"):
                continue
            evaluation = trace["evaluation"]
            ends[evaluation["status"]] += 1
            if evaluation["status"] == "PASSED":
                times[trace["solution"], trace["workload"]["uuid"]] = evaluation["performance"]["latency_ms"]
    return times, dict(ends)


def repeat(family: str, options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Run one evaluator several times, each time on a fresh copy of the dataset."""
    runs, walls, shares, ends = [], [], [], {}
    for number in range(count):
        root = options.out / f"{family}{number}"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(options.out / "dataset", root)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        if family == "fib":
            command = [
                sys.executable,
                "-m",
                "fib_tools",
                "bench",
                "--dataset",
                str(root),
                "--workspace",
                f"{root}-work",
            ]
        else:
            command = [sys.executable, "-c", PEER, "run", "--local", str(root)]
            environment["FIB_CACHE_PATH"] = str(options.out / f"cache-{family}{number}")
            environment["TRITON_CACHE_DIR"] = str(options.out / f"triton-{family}{number}")
        if family == "cupti":
            environment["PYTHONPATH"] = os.pathsep.join([str(give_cupti(options.out)), environment["PYTHONPATH"]])
        wall, share = run(command, options.out / f"{family}{number}.log", environment)
        times, ends = read_traces(root)
        print(f"{family} {number}: {wall:.1f} s, GPU busy {share:.0%}, {ends}", flush=True)
        runs.append(times)
        walls.append(wall)
        shares.append(share)
    return {"walls": walls, "shares": shares, "runs": runs, "ends": ends}


def give_cupti(out: Path) -> Path:
    """Copy the installed flashinfer-bench to a folder, and give the copy another way to time."""
    found = importlib.util.find_spec("flashinfer_bench")
    if found is None or found.origin is None:
        raise SystemExit("flashinfer-bench is not installed: pip install flashinfer-bench==0.1.2")
    folder = out / "with_cupti"
    if not folder.exists():
        shutil.copytree(Path(found.origin).parent, folder / "flashinfer_bench")
        with (folder / "flashinfer_bench" / "bench" / "timing.py").open("a") as stream:
            stream.write(CUPTI_TIMING)
    return folder


NEIGHBOUR = """
import sys, torch
value = torch.zeros(1, device="cuda")
for line in sys.stdin:
    value.add_(1)
    torch.cuda.synchronize()
    print(line, end="", flush=True)
"""


@contextmanager
def start_neighbour() -> Iterator[Callable[[], None]]:
    """Start another process with a context on the GPU; give what makes it use the GPU for a moment."""
    process = subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        pipe, answers = process.stdin, process.stdout
        if pipe is None or answers is None:
            raise OSError("the neighbour has no pipes")

        def tick() -> None:
            pipe.write("tick\n")
            pipe.flush()
            answers.readline()

        tick()
        yield tick
        pipe.close()


def measure_yardstick(dataset: Path, before: Callable[[], None] = lambda: None) -> Times:
    """Time every Solution by replays of a graph of ten calls, each behind a flush, less the flushes."""
    import torch

    flushed = torch.empty(2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.int8, device="cuda")
    times: Times = {}
    for path in sorted(dataset.glob("solutions/*/*/*/*.json")):
        solution = json.loads(path.read_text())
        op_type, name = path.parts[-3], path.parts[-2]
        definition = json.loads((dataset / "definitions" / op_type / f"{name}.json").read_text())
        function = load(solution, path)
        for line in (dataset / "workloads" / op_type / f"{name}.jsonl").read_text().splitlines():
            workload = json.loads(line)["workload"]
            lengths = {n: a.get("value", workload["axes"].get(n)) for n, a in definition["axes"].items()}
            arguments = list(make_tensors(definition["inputs"], lengths))
            if solution["spec"]["destination_passing_style"]:
                arguments += make_tensors(definition["outputs"], lengths)
            function(*arguments)
            times[solution["name"], workload["uuid"]] = time_graphs(function, arguments, flushed, before)
    return times


def load(solution: dict[str, Any], path: Path) -> Any:
    """Import a Solution; Triton wants its source in a file."""
    target = path.with_suffix(".py")
    target.write_text(solution["sources"][0]["content"])
    spec = importlib.util.spec_from_file_location(f"yardstick_{solution['name']}", target)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target.unlink()
    return module.run


def make_tensors(specs: dict[str, Any], lengths: dict[str, int]) -> Iterator[Any]:
    import torch

    for spec in specs.values():
        shape = [lengths[axis] for axis in spec["shape"]]
        yield torch.randn(shape, device="cuda").to(getattr(torch, spec["dtype"]))


def time_graphs(
    function: Any, arguments: list[Any], flushed: Any, before: Callable[[], None], *, calls: int = 10, replays: int = 24
) -> float:
    import torch

    graphs = []
    for has_call in (True, False):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                flushed.zero_()
                if has_call:
                    function(*arguments)
        graph.replay()
        graphs.append(graph)
    samples = []
    before()
    for _ in range(replays):
        pair = []
        for graph in graphs:
            first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(400_000)  # noqa: SLF001  # it has no public name
            first.record()
            graph.replay()
            second.record()
            second.synchronize()
            pair.append(first.elapsed_time(second))
        samples.append((pair[0] - pair[1]) / calls)
    return statistics.median(samples)


def spreads(runs: list[Times], names: Iterable[str]) -> list[float]:
    """Give IQR over median of each evaluation's figure over the repeats, in percent."""
    chosen = set(names)
    found = []
    for key in set.intersection(*(set(each) for each in runs)):
        if key[0] in chosen and len(runs) > 1:
            values = sorted(each[key] for each in runs)
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
            found.append(100 * (high - low) / statistics.median(values))
    return found


def medians(runs: list[Times]) -> Times:
    keys = set.intersection(*(set(each) for each in runs))
    return {key: statistics.median(each[key] for each in runs) for key in keys}


def write_figures(path: Path, yardsticks: Mapping[str, Times], found: dict[str, Any]) -> None:
    """Write every figure of every run, in microseconds."""
    keys = sorted(yardsticks["alone"])
    table = {
        f"{solution} {uuid[:8]}": {
            **{f"yardstick {name}": round(1e3 * times[solution, uuid], 3) for name, times in yardsticks.items()},
            **{
                family: [round(1e3 * each[solution, uuid], 3) for each in runs["runs"] if (solution, uuid) in each]
                for family, runs in found.items()
            },
        }
        for solution, uuid in keys
    }
    path.write_text(json.dumps(table, indent=0))


def say(values: list[float], unit: str = "%") -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    return (
        f"{statistics.median(ordered):.2f}{unit} (90%: {ordered[int(0.9 * len(ordered))]:.2f}, max {ordered[-1]:.2f})"
    )


def describe(family: str, found: dict[str, Any], yardsticks: Mapping[str, Times], evaluations: int) -> list[str]:
    """Write what one evaluator's runs say."""
    runs, walls = found["runs"], found["walls"]
    figures = medians(runs)
    names = {key[0] for key in figures}
    single = {name for name in names if name.startswith("triton")}
    wall = statistics.median(walls)
    busy = statistics.median([w * s for w, s in zip(walls, found["shares"], strict=True)])
    lines = [
        (
            f"{family}: {wall:.1f} s wall, {wall / evaluations:.3f} s an evaluation, GPU busy {busy:.1f} s;"
            f" {len(figures)} of {evaluations} passed; ends {found['ends']}"
        ),
        (
            f"  spread (IQR/median over {len(runs)} runs): one kernel {say(spreads(runs, single))};"
            f" several {say(spreads(runs, names - single))}"
        ),
    ]
    kinds = (("one kernel", single), ("several", names - single))
    for (name, yardstick), (title, chosen) in itertools.product(yardsticks.items(), kinds):
        ratios = [figures[key] / yardstick[key] for key in figures if key[0] in chosen and key in yardstick]
        if ratios:
            outside = sum(abs(ratio - 1) > 0.1 for ratio in ratios)
            lines.append(
                f"  over the yardstick {name}, {title}: {min(ratios):.2f} to {max(ratios):.2f},"
                f" median {statistics.median(ratios):.2f}; {outside} of {len(ratios)} outside 10%"
            )
    twins = [
        100 * abs(figures[key] / figures[key[0].replace(TWIN, "triton"), key[1]] - 1)
        for key in figures
        if key[0].startswith(TWIN) and (key[0].replace(TWIN, "triton"), key[1]) in figures
    ]
    return [*lines, f"  a kernel against itself: {say(twins)} apart"]


def read_peer(text: str) -> tuple[str, int]:
    """Read a way of the peer's to time, and how often."""
    name, _, count = text.partition(":")
    if name not in {"events", "cupti"}:
        raise argparse.ArgumentTypeError(f"{name!r} is neither events nor cupti")
    return name, int(count or 5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for datasets, logs and results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--peer", nargs="*", type=read_peer, default=[("events", 5), ("cupti", 5)], help="events:5 cupti:2"
    )
    parser.add_argument(
        "--workloads",
        type=int,
        choices=range(1, len(ROWS) + 1),
        default=len(ROWS),
        help="of each Definition, from the smallest to the largest",
    )
    options = parser.parse_args()
    shutil.rmtree(options.out / "dataset", ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    steps = max(1, options.workloads - 1)
    rows = [ROWS[round(step * (len(ROWS) - 1) / steps)] for step in range(options.workloads)]
    evaluations = write_dataset(options.out / "dataset", rows)
    counts = {"fib": options.repeats, **dict(options.peer)}
    yardsticks = {"alone": measure_yardstick(options.out / "dataset")}
    with start_neighbour() as tick:
        yardsticks["beside another"] = measure_yardstick(options.out / "dataset", tick)
    import torch

    torch.cuda.empty_cache()
    lines = [f"{describe_machine(VERSIONS)}; {evaluations} evaluations"]
    found: dict[str, Any] = {}
    for family, count in counts.items():
        found[family] = repeat(family, options, count)
        lines += describe(family, found[family], yardsticks, evaluations)
        (options.out / "side_by_side.txt").write_text("\n".join(lines) + "\n")
        write_figures(options.out / "side_by_side.json", yardsticks, found)
    base = statistics.median(found["fib"]["walls"])
    for family, _ in options.peer:
        lines.append(f"fib bench is {statistics.median(found[family]['walls']) / base:.2f} times as fast as {family}")
    text = "\n".join(lines)
    (options.out / "side_by_side.txt").write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
