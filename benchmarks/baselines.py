"""Evaluate the baselines of every Definition of a dataset on a GPU, under calibrated tolerances, and print how near the limit they are.

python benchmarks/baselines.py DEFINITIONS --out FOLDER [--gpus N] [--steps calibrate bench] [--only OP_TYPE ...] [--sizes ...]

DEFINITIONS is a dataset folder; its Definitions are copied, and a Workload of each size is written for each of them,
with the lengths that the reference tests use. Without the step `calibrate` the op_types' own bounds hold. Where
FlashInfer's kernels are not compiled yet, most of the time goes into that: reference_tests.py compiles them in many
processes. Writes to the folder `baselines.txt`, `baselines.json` and the dataset with its Traces.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fib_tools.dataset.store import Dataset  # noqa: E402  # the path must be there first
from fib_tools.model.trace import Trace  # noqa: E402
from fib_tools.op_types.size_workloads import make_size_workloads  # noqa: E402
from fib_tools.op_types.sizes import SIZES  # noqa: E402

_DETAIL = 160
_END_SECONDS = 15.0
"""Of a command's time, kept for it to end in once it is interrupted."""


def write_dataset(source: Path, root: Path, options: argparse.Namespace) -> dict[str, str]:
    """Copy the Definitions and write their Workloads; give the size of each Workload by its uuid."""
    if not options.keep:
        shutil.rmtree(root, ignore_errors=True)
    (root / "definitions").mkdir(parents=True, exist_ok=True)
    dataset, sizes = Dataset(root), {}
    for _, definition in sorted(Dataset.open(source).load_definitions()[0].items()):
        if options.only and definition.op_type not in options.only:
            continue
        dataset.write_definition(definition)
        made = make_size_workloads(definition, options.sizes)
        sizes |= {workload.uuid: size for size, workload in made.items()}
        traces = [Trace(definition=definition.name, workload=workload) for workload in made.values()]
        dataset.write_workloads(definition.op_type, traces)
    return sizes


def fib(*words: str, options: argparse.Namespace, log: str, share: float = 1.0) -> dict[str, Any]:
    """Run one of our commands for a share of the time that is left at most; give what it prints as JSON."""
    command = [sys.executable, "-m", "fib_tools", *words, "--dataset", str(options.out / "dataset")]
    command += ["--workspace", str(options.out / "work"), "--json"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with (options.out / log).open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stream, env={**os.environ, "PYTHONPATH": paths}
        )
        try:
            seconds = share * (options.deadline - time.perf_counter()) - _END_SECONDS
            said, _ = process.communicate(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            said = end(process)
            print(f"{words[0]} was interrupted: the time is over", file=sys.stderr)
    return json.loads(said) if said.strip() else {}


def end(process: subprocess.Popen[bytes]) -> bytes:
    """Interrupt a command, and kill it if it goes on; give what it printed."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=_END_SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return b""


def read_rows(dataset: Path) -> list[dict[str, Any]]:
    """Read what was measured last from the evidence, which is there also when the run was interrupted."""
    evidence = [json.loads(path.read_text()) for path in dataset.glob("evidence/*/*.json")]
    rows = {}
    for found in sorted(evidence, key=lambda each: each["timestamp"]):
        figure = next(iter(found.get("series", ())), {})
        subject = found["subject"]
        rows[subject["definition"], subject["solution"], subject["workload"]] = {
            **{name: subject[name] for name in ("definition", "workload", "solution")},
            **{name: found.get(name) or "" for name in ("status", "rule", "detail")},
            "milliseconds": figure.get("milliseconds"),
            "percent_of_limit": (found.get("roofline") or {}).get("percent"),
        }
    return [rows[key] for key in sorted(rows)]


def calibrate(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Calibrate with one process for each GPU, which the GPU lock keeps apart; neighbours, which are alike, part ways.

    Takes at most a share of the time; what was finished, now or before, is read from the files.
    """
    parts = [",".join(names[start :: options.gpus]) for start in range(options.gpus)]
    with ThreadPoolExecutor(options.gpus) as pool:
        list(
            pool.map(
                lambda part: fib(
                    "calibrate",
                    "--definitions",
                    part[1],
                    "--device",
                    "cuda",
                    options=options,
                    log=f"calibrate{part[0]}.log",
                    share=options.share,
                ),
                enumerate(parts),
            )
        )
    return [json.loads(path.read_text()) for path in sorted((options.out / "work").glob("calibrations/*/*.json"))]


def sum_up(calibrations: list[dict[str, Any]], count: int) -> list[str]:
    """Say how many are calibrated, by what, and why some are not to be used."""
    kinds: collections.Counter[str] = collections.Counter()
    lines = []
    for each in calibrations:
        bases = {output["basis"] for output in each["outputs"].values()}
        kinds["refused" if each.get("refused") else "by kernels" if "kernels" in bases else "by the policy"] += 1
        lines += [f"  {each['definition']}: refused: {reason[:_DETAIL]}" for reason in each.get("refused", ())]
    said = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return [f"calibrated: {len(calibrations)} of {count}: {said}", *lines]


def tabulate(rows: list[dict[str, Any]], sizes: dict[str, str], op_types: dict[str, str]) -> list[str]:
    """Write a line for each op_type, then each baseline that did not pass."""
    groups: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        groups[op_types[row["definition"]]].append(row)
    head = f"{'op_type':18}{'evaluations':>12}{'passed':>8}   % of the measured limit, median (most): " + ", ".join(
        SIZES
    )
    lines = [head]
    for op_type, mine in sorted(groups.items()):
        shares = []
        for size in SIZES:
            found = [row["percent_of_limit"] for row in mine if sizes[row["workload"]] == size]
            known = [share for share in found if share is not None]
            shares.append(f"{statistics.median(known):.1f} ({max(known):.1f})" if known else "-")
        passed = sum(row["status"] == "PASSED" for row in mine)
        lines.append(f"{op_type:18}{len(mine):>12}{passed:>8}   {', '.join(shares)}")
    passed = sum(row["status"] == "PASSED" for row in rows)
    lines.append(f"{'all':18}{len(rows):>12}{passed:>8}")
    seen = set()
    for row in rows:
        if row["status"] != "PASSED" and (row["definition"], row["solution"]) not in seen:
            seen.add((row["definition"], row["solution"]))
            detail = " ".join((row.get("detail") or "").split())[:_DETAIL]
            lines.append(f"{row['status']} {row.get('rule') or ''} {row['definition']} {row['solution']}: {detail}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("definitions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--steps", nargs="+", choices=("calibrate", "bench"), default=["bench"])
    parser.add_argument("--share", type=float, default=0.5, help="of the time that calibrating may take")
    parser.add_argument("--keep", action="store_true", help="go on with what the folder holds")
    parser.add_argument("--only", nargs="+", help="these op_types")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--total", type=float, default=7200.0, help="seconds after which what was measured counts")
    options = parser.parse_args()
    options.deadline = time.perf_counter() + options.total
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = write_dataset(options.definitions, options.out / "dataset", options)
    written = fib("baselines", "write", options=options, log="write.log")
    op_types = {entry["definition"]: entry["op_type"] for entry in written["entries"]}
    baselines = sum(entry["status"] in {"written", "unchanged"} for entry in written["entries"])
    lines = [f"{len(op_types)} Definitions, {baselines} baselines"]
    if "calibrate" in options.steps:
        begun = time.perf_counter()
        entries = calibrate(sorted(op_types), options)
        lines += [f"calibrated in {time.perf_counter() - begun:.0f} s", *sum_up(entries, len(op_types))]
    result = {}
    if "bench" in options.steps:
        result = fib("bench", "--authors", "baseline", "--gpus", str(options.gpus), options=options, log="bench.log")
    rows = read_rows(options.out / "dataset")
    (options.out / "baselines.json").write_text(
        json.dumps([{**row, "size": sizes[row["workload"]]} for row in rows], indent=1)
    )
    lines += tabulate(rows, sizes, op_types)
    lines += [str(failure)[:300] for failure in result.get("failures", ())]
    lines.append(f"{len(result.get('unfit', ()))} baselines are for other GPUs")
    lines.append(f"{result.get('seconds', 0):.0f} s on {options.gpus} x {result.get('hardware', '?')}")
    text = "\n".join(lines)
    (options.out / "baselines.txt").write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
