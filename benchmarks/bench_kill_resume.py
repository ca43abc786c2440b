"""Kill `fib bench` at random moments, resume it, and compare its Traces with those of a run that nobody disturbed.

python benchmarks/bench_kill_resume.py [--times 20] [--seed 0] [--workloads 3]

Each try has a workspace and a dataset of its own. What is compared is everything in the Traces but times and clocks.
The whole process group is killed; what a worker started has to be gone as well, and is looked for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fib_tools.dataset.store import Dataset
from fib_tools.host.process_tree import describe_process, list_descendants, list_processes
from fib_tools.model.base import to_document
from fib_tools.model.solution import Solution
from fib_tools.model.trace import Trace
from fib_tools.model.workload import Workload, workload_uuid
from fib_tools.op_types.registry import get_kernel_type

SIZES = (64, 96, 128)
WRONG = "import torch\n\n\ndef run(*inputs):\n    return torch.zeros_like(inputs[0])\n"
TIMES = ("timestamp", "performance")
_GONE_SECONDS = 10.0
"""For the last process to see that its parent is gone."""


def make_dataset(root: Path, workloads: int) -> int:
    """Write three Definitions, each with a Solution that is right and one that is wrong; give the evaluations."""
    dataset = Dataset(root)
    count = 0
    for size in SIZES:
        definition = get_kernel_type("rmsnorm").build({"hidden_size": size})
        dataset.write_definition(definition)
        inputs: dict[str, Any] = {name: {"type": "random"} for name in definition.inputs}
        made = []
        for rows in range(1, workloads + 1):
            document = {"axes": {"batch_size": rows}, "inputs": inputs, "uuid": "x"}
            parsed = Workload.model_validate(document)
            uuid = workload_uuid(definition.name, parsed.axes, parsed.inputs)
            made.append(Trace(definition=definition.name, workload=parsed.model_copy(update={"uuid": uuid})))
        dataset.write_workloads(definition.op_type, made)
        for name, source in (("right", definition.reference), ("wrong", WRONG)):
            document = {
                "name": f"{name}_{definition.name}",
                "definition": definition.name,
                "author": "someone",
                "spec": {
                    "language": "python",
                    "target_hardware": ["cpu"],
                    "entry_point": "main.py::run",
                    "destination_passing_style": False,
                },
                "sources": [{"path": "main.py", "content": source}],
            }
            solution = Solution.model_validate(document)
            path = root / "solutions/someone" / definition.op_type / definition.name / f"{solution.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(to_document(solution)), encoding="utf-8")
            count += len(made)
    return count


def command(workspace: Path) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "fib_tools",
            "bench",
            "--device",
            "cpu",
            "--resume",
            "--seed",
            "7",
            "--json",
            "--quiet",
        ),
        *("--workspace", str(workspace), "--dataset", str(workspace / "data")),
    ]


def read_traces(workspace: Path) -> list[str]:
    """Give every Trace without its times, in order."""
    found = []
    for path in sorted((workspace / "data" / "traces").rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            trace = json.loads(line)
            evaluation = {key: value for key, value in trace["evaluation"].items() if key not in TIMES}
            extra = (evaluation.get("correctness") or {}).get("extra", {})
            for name in ("interval_ms", "percent_of_limit", "calls"):
                extra.pop(name, None)
            found.append(json.dumps({**trace, "evaluation": evaluation}, sort_keys=True))
    return found


def read_journal(workspace: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in workspace.glob("bench/*/results.jsonl"))


def find_survivors(family: set[int]) -> list[str]:
    """Find who of the processes that were killed, or should have gone with them, lives on a few seconds later."""
    until = time.monotonic() + _GONE_SECONDS
    while True:
        parents = list_processes()
        found = [describe_process(pid, parents[pid]).command for pid in family & set(parents)]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.05)


def attempt(workspace: Path, template: Path, moment: float) -> tuple[set[int], int]:
    """Run until the moment, and kill; give the processes that there were to end, and how much was finished."""
    shutil.copytree(template, workspace / "data")
    child = subprocess.Popen(
        command(workspace), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    family: set[int] = set()
    try:
        child.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        family = list_descendants([child.pid], list_processes())
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return family, read_journal(workspace)


def name_evaluations(traces: list[str]) -> list[tuple[str, str]]:
    """Name what was evaluated, whatever came of it: a verdict that depends on times may differ on a busy machine."""
    return [(trace["solution"], trace["workload"]["uuid"]) for trace in map(json.loads, traces)]


def show_difference(expected: list[str], found: list[str]) -> None:
    for line in sorted(set(expected) ^ set(found))[:4]:
        print(f"    {'-' if line in expected else '+'} {line[:600]}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workloads", type=int, default=3)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    root = Path(tempfile.mkdtemp(prefix="fib-bench-kill-"))
    planned = make_dataset(root / "template", options.workloads)
    whole = root / "whole"
    shutil.copytree(root / "template", whole / "data")
    began = time.perf_counter()
    subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
    length = time.perf_counter() - began
    expected = read_traces(whole)
    print(f"{planned} evaluations, {len(expected)} Traces, {length:.1f} s undisturbed", flush=True)
    same = killed = 0
    for index in range(options.times):
        workspace = root / f"run{index}"
        workspace.mkdir()
        moment = rng.uniform(0.1, 0.75 * length)  # runs differ in length: nearly all are killed in time
        family, done = attempt(workspace, root / "template", moment)
        survivors = find_survivors(family)
        resumed = subprocess.run(command(workspace), check=False, stdout=subprocess.PIPE)
        runs = len(list(workspace.glob("bench/*/plan.json")))
        found = read_traces(workspace)
        show_difference(expected, found)
        is_whole = name_evaluations(found) == name_evaluations(expected)
        is_same = found == expected and resumed.returncode == 0 and runs == 1 and not survivors
        same += is_same
        killed += bool(family)
        what = f"killed ({len(family)} processes)" if family else "ended"
        print(
            f"{index:3d} {what} at {moment:5.2f} s with {done:3d} finished; resumed: exit {resumed.returncode}, "
            f"runs {runs}, survivors {len(survivors)}, the same evaluations {is_whole}, with the same verdicts {is_same}",
            flush=True,
        )
        shutil.rmtree(workspace)
    print(f"{same} of {options.times} the same; {killed} were killed in time")
    shutil.rmtree(root)
    return 0 if same == options.times and len(expected) == planned else 1


if __name__ == "__main__":
    sys.exit(main())
