"""Workloads of models that SGLang serves with made-up weights: `fib define`, `fib collect`, `fib validate`, and what came of it.

python benchmarks/collect_workloads.py --out DIR [--models llama-3.2-3b:1 kimi-k2:8] [--batch-sizes 1 4 16 64] [--timeout 500]

Models are served at the same time, each on a GPU of its own where there are as many. Needs a GPU and SGLang.
Prints the runs, the distribution of lengths over all calls beside that of the Workloads, the most bytes of calls that lay
on the disk, and the seconds of reading 1,000 calls. Exit status 1 where a Workload was rejected or the dataset has errors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("torch", "sglang", "sglang-kernel", "flashinfer-python", "transformers")


def fib(*words: str, log: Path) -> tuple[int, dict[str, Any]]:
    """Run one of our commands; give its exit status and what it prints as JSON."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with log.open("ab") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "fib_tools", *words, "--json", "--offline"],
            stdout=subprocess.PIPE,
            stderr=stream,
            env={**os.environ, "PYTHONPATH": paths},
            check=False,
        )
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}


def collect(model: str, options: argparse.Namespace) -> tuple[bool, list[str]]:
    """Define, collect and validate one model; give whether all went well, and the lines that say what came of it."""
    name, _, tp = model.partition(":")
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    log, place = folder / "log.txt", ("--workspace", str(folder / "work"))
    begun = time.perf_counter()
    _, defined = fib("define", name, "--tp-list", tp, *place, log=log)
    at = time.perf_counter()
    sizes = ",".join(map(str, options.batch_sizes))
    traffic = ("--batch-sizes", sizes, "--isl", str(options.isl), "--osl", str(options.osl))
    status, found = fib("collect", name, "--tp-list", tp, *traffic, "--timeout", str(options.timeout), *place, log=log)
    seconds = time.perf_counter() - at
    (folder / "collect.json").write_text(json.dumps(found, indent=1))
    valid, report = fib("validate", "--checks", "workload,layout", *place, log=log)
    lines = [f"== {name}, TP {tp}: {len(defined.get('entries', ()))} Definitions in {at - begun:.0f} s"]
    if "runs" not in found:
        return False, [*lines, f"fib collect ended with {status}: {log.read_text(errors='replace')[-1500:]}"]
    lines += [f"{run['name']}: {run['status']} in {run['seconds']:.0f} s {run['error'][:300]}" for run in found["runs"]]
    lines += [found["requests"], *describe(found), f"fib collect: exit {status} after {seconds:.0f} s"]
    errors = [item for item in report.get("findings", ()) if item["severity"] == "error"]
    lines.append(f"fib validate: exit {valid}, {len(errors)} errors {[item['check'] for item in errors][:5]}")
    return status == 0 and not errors, lines


def describe(found: dict[str, Any]) -> list[str]:
    """Say what the calls were, and what they became."""
    total = sum(entry["workloads"] for entry in found["entries"])
    rejected = sum(len(entry.get("rejected", ())) for entry in found["entries"])
    read = (
        f"{found['calls']} calls, {found['plans']} of them plan(), read in {found['reading_seconds']:.1f} s: "
        f"{1000 * found['reading_seconds'] / max(1, found['calls']):.2f} s for 1,000; "
        f"at most {(found['most_bytes'] or 0) / 1e6:.1f} MB of calls on the disk"
    )
    lines = [
        read,
        f"{total} Workloads of {len(found['entries'])} Definitions, all executed; {rejected} rejected",
        f"{'definition':58}{'calls':>8}{'distinct':>9}{'kept':>6}  axis: least / median / p95 / most of calls | of Workloads",
    ]
    for entry in found["entries"]:
        shown = "; ".join(
            f"{each['axis']}: {show(each['calls'])} | {show(each['chosen'])}" for each in entry.get("spreads", ())[:4]
        )
        lines.append(
            f"{entry['definition'][:57]:58}{entry['calls']:>8}{entry['distinct']:>9}{entry['workloads']:>6}  {shown}"
        )
    lines += [
        f"no Workload: {item['calls']} x {item['function']}: {item['reason'][:160]}"
        for item in found.get("refused", ())
    ]
    others = ", ".join(f"{name} {count}" for name, count in found.get("others", {}).items())
    return [*lines, f"of no kernel type: {others or 'none'}", f"without a call: {len(found['not_seen'])} Definitions"]


def show(lengths: dict[str, int] | None) -> str:
    """Write quantiles in one word."""
    return "/".join(str(lengths[name]) for name in ("least", "median", "p95", "most")) if lengths else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["llama-3.2-3b:1", "kimi-k2:8"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--isl", type=int, default=512)
    parser.add_argument("--osl", type=int, default=16)
    parser.add_argument("--timeout", type=int, default=500)
    options = parser.parse_args()
    print(describe_machine(VERSIONS), flush=True)
    with ThreadPoolExecutor(len(options.models)) as pool:
        results = list(pool.map(lambda model: collect(model, options), options.models))
    text = "\n".join(line for _, lines in results for line in lines)
    (options.out / "collect_workloads.txt").write_text(text + "\n")
    print(text)
    return 0 if all(good for good, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
