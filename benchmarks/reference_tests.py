"""Run the reference tests of a dataset on a GPU in many processes at once, and say what passed, failed and was skipped.

python benchmarks/reference_tests.py DATASET --out FOLDER [--jobs 14] [--limit 540] [--prefer sglang:moe_]

Needs torch, pytest and the kernel packages, nothing of this project. What takes time on a fresh machine is compiling:
tests are grouped by the module that they compile, the first of each group runs alone, and the others after it.
Writes to the folder `summary.json` (versions, table, how near the kernel came at each size), `results.json` (every
test's record) and `failures.txt`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZES_IN_NAMES = re.compile(r"_(?:h|kv|ps|n|k|v|i|e|b|topk|ng|kg|d(?=\d+_rd)|rd)\d+")
"""Lengths that do not make another compiled module."""
SEVERAL_MODULES = ("gqa_paged", "gqa_ragged", "mla_paged", "mla_ragged", "moe", "moe_routing", "page")
"""op_types whose Definitions compile several; those of another share one."""
FIRST = ("gqa_paged_prefill", "gqa_ragged", "mla_ragged", "mla_paged", "sampling", "gemm_fp8", "moe")
"""Groups that compile longest."""
PER_PROCESS = 6
FAILURE_LENGTH = 6000
METRICS = re.compile(
    r"(?P<output>\w+): max (?P<max>\S+), mean (?P<mean>\S+), rms (?P<rms>\S+), cosine (?P<cosine>\S+), "
    r"misses (?P<misses>\d+) of (?P<values>\d+)"
)
KERNEL_TEST = "test_the_kernel_agrees_with_the_reference"
VERSIONS = """
import importlib.metadata as m, json, subprocess, torch
names = ("torch", "triton", "flashinfer-python", "sglang", "sglang-kernel", "sgl-kernel", "pytest")
found = {}
for name in names:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
import flashinfer
found["flashinfer-python"] = flashinfer.__version__
if torch.cuda.is_available():
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found["driver"] = subprocess.check_output(query, text=True).split()[0]
    found["cuda"], found["gpu"] = torch.version.cuda, torch.cuda.get_device_name()
print(json.dumps(found))
"""


@dataclass
class Batch:
    """Test files that one process runs."""

    files: list[Path]
    group: str
    is_first: bool
    records: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    seconds: float = 0.0
    status: str = "waiting"


@dataclass
class Run:
    """All batches, and where their output goes."""

    dataset: Path
    out: Path
    work: Path
    jobs: int
    device: str
    prefer: dict[str, str]
    process_limit: float
    only: str
    batches: list[Batch] = field(default_factory=list)

    def fill(self) -> None:
        """Group the files, and make one batch of the first of each group, some of the rest."""
        groups: dict[str, list[Path]] = collections.defaultdict(list)
        for path in sorted((self.dataset / "tests" / "references").glob("test_*.py")):
            op_type, stem = read_op_type(path), path.stem.removeprefix("test_")
            if not re.search(self.only, stem):
                continue
            name = SIZES_IN_NAMES.sub("", stem)
            groups[name if op_type in SEVERAL_MODULES else op_type].append(path)
        order = sorted(groups, key=lambda name: next((i for i, p in enumerate(FIRST) if name.startswith(p)), 99))
        for name in order:
            self._add(name, groups[name][:1], is_first=True)
        for name in order:
            rest = groups[name][1:]
            for start in range(0, len(rest), PER_PROCESS):
                self._add(name, rest[start : start + PER_PROCESS], is_first=False)

    def _add(self, group: str, files: list[Path], *, is_first: bool) -> None:
        records = self.work / f"{len(self.batches):03d}.json"
        self.batches.append(Batch(files=files, group=group, is_first=is_first, records=records))

    def next(self) -> Batch | None:
        """Find a batch whose group is compiled, or that compiles it."""
        done = {batch.group for batch in self.batches if batch.is_first and batch.status not in {"waiting", "running"}}
        waiting = [batch for batch in self.batches if batch.status == "waiting"]
        return next((batch for batch in waiting if batch.is_first or batch.group in done), None)

    def start(self, batch: Batch) -> None:
        prefer = next((kind for prefix, kind in self.prefer.items() if batch.group.startswith(prefix)), "")
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--no-header"),
            *("--device", self.device, "--records", str(batch.records)),
            *(("--prefer", prefer) if prefer else ()),
            *map(str, batch.files),
        ]
        log = batch.records.with_suffix(".log").open("wb")
        batch.process = subprocess.Popen(
            command,
            cwd=self.dataset,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        batch.started, batch.status = time.monotonic(), "running"

    def watch(self) -> None:
        """Note which batches ended, and end those that take too long."""
        for batch in self.batches:
            if batch.status != "running" or batch.process is None:
                continue
            batch.seconds = time.monotonic() - batch.started
            if batch.process.poll() is not None:
                batch.status = f"exit {batch.process.returncode}"
                say(f"{batch.group} ({len(batch.files)} files): {batch.status} after {batch.seconds:.0f} s")
            elif batch.seconds > self.process_limit:
                self.end(batch, f"stopped after {self.process_limit:.0f} s")

    def end(self, batch: Batch, status: str) -> None:
        if batch.process is not None:
            os.killpg(batch.process.pid, signal.SIGKILL)
            batch.process.wait()
        batch.status = status
        say(f"{batch.group}: {status}")

    def go(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        while any(batch.status in {"waiting", "running"} for batch in self.batches):
            if time.monotonic() > deadline:
                for batch in self.batches:
                    if batch.status == "running":
                        self.end(batch, "stopped at the time limit")
                    elif batch.status == "waiting":
                        batch.status = "not started: time limit"
                return
            while sum(batch.status == "running" for batch in self.batches) < self.jobs and (free := self.next()):
                self.start(free)
            time.sleep(0.2)
            self.watch()


def say(text: str) -> None:
    sys.stdout.write(f"[{time.monotonic() - BEGAN:6.1f} s] {text}\n")
    sys.stdout.flush()


def read_records(batch: Batch) -> list[dict[str, Any]]:
    """Read what a batch measured; a file without records has one that says why."""
    found: list[dict[str, Any]] = []
    if batch.records.exists():
        found = json.loads(batch.records.read_text(encoding="utf-8"))
    seen = {record["definition"] for record in found}
    log = batch.records.with_suffix(".log")
    tail = log.read_text(encoding="utf-8", errors="replace")[-FAILURE_LENGTH:] if log.exists() else ""
    for path in batch.files:
        name = path.stem.removeprefix("test_")
        if name not in seen:
            lost = {"definition": name, "test": "process", "outcome": "failed", "reason": batch.status, "trace": tail}
            found.append(lost)
    return found


def read_op_type(path: Path) -> str:
    found = re.search(r'^OP_TYPE = "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "?"


def judge(records: list[dict[str, Any]]) -> tuple[str, str]:
    """Say what became of one Definition: failed, passed against a kernel, or skipped and why."""
    failed = [record for record in records if record["outcome"] == "failed"]
    if failed:
        first = failed[0]
        return "failed", f"{first['test']} {first.get('size')}: {first['reason'].strip().splitlines()[:3]}"
    kernels = [record for record in records if record["test"] == KERNEL_TEST]
    passed = [record for record in kernels if record["outcome"] == "passed"]
    if passed:
        return "passed", f"{passed[0].get('kernel')}, {len(passed)} sizes"
    return "skipped", next((record["reason"] for record in kernels), "no kernel test ran")


def show(table: dict[str, collections.Counter[str]], verdicts: dict[str, tuple[str, str]]) -> None:
    """Print the table, then every reason that is not a pass, with the Definitions that have it."""
    say("")
    for op_type in sorted(table):
        counts = table[op_type]
        say(f"{op_type:14} passed {counts['passed']:3}  failed {counts['failed']:3}  skipped {counts['skipped']:3}")
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    for name, (verdict, why) in verdicts.items():
        if verdict != "passed":
            reasons[f"{verdict}: {why[:400]}"].append(name)
    for why, names in reasons.items():
        say(f"{why}: {', '.join(names[:6])}{f' and {len(names) - 6} more' * (len(names) > 6)}")


def measure(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Give how near the kernel came at each size, one list of numbers for each output; samples have a sentence."""
    sizes: dict[str, Any] = {}
    for record in records:
        if record["test"] != KERNEL_TEST or not record.get("size"):
            continue
        lines = record.get("metrics", [])
        found = [METRICS.match(line) for line in lines]
        numbers = {item["output"]: [float(value) for value in item.groups()[1:]] for item in found if item}
        sizes[record["size"]] = numbers or lines[:1] or record["reason"][:200]
    return sizes


def write_summary(path: Path, head: dict[str, Any], rows: dict[str, dict[str, Any]]) -> None:
    """Write one line for each Definition."""
    lines = [f'  "{name}": {json.dumps(row)}' for name, row in rows.items()]
    document = json.dumps(
        {**head, "an output's numbers": ["max", "mean", "rms", "cosine", "misses", "values"]}, indent=1
    )
    path.write_text(document[:-2] + ',\n "definitions": {\n' + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")


def write_failures(path: Path, records: dict[str, list[dict[str, Any]]]) -> None:
    lines = []
    for name, own in records.items():
        for record in own:
            if record["outcome"] == "failed":
                text = record.get("trace", "")[-FAILURE_LENGTH:]
                lines.append(f"== {name} {record['test']} {record.get('size')}\n{record['reason']}\n{text}\n")
    path.write_text("\n".join(lines)[: 8 << 20], encoding="utf-8")


def report(run: Run, versions: dict[str, Any], seconds: float) -> int:
    """Write the table, the records and the failures; return how many Definitions failed."""
    records: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    op_types: dict[str, str] = {}
    for batch in run.batches:
        for path in batch.files:
            op_types[path.stem.removeprefix("test_")] = read_op_type(path)
        for record in read_records(batch):
            records[record["definition"]].append(record)
    verdicts = {name: judge(own) for name, own in sorted(records.items())}
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, (verdict, _) in verdicts.items():
        table[op_types.get(name, "?")][verdict] += 1
    show(table, verdicts)
    totals = collections.Counter(verdict for verdict, _ in verdicts.values())
    say(f"{sum(totals.values())} Definitions: {dict(totals)} in {seconds:.0f} s")
    head = {"versions": versions, "seconds": round(seconds, 1), "totals": totals, "table": table}
    rows = {
        name: {"verdict": verdict, "why": why, "sizes": measure(records[name])}
        for name, (verdict, why) in verdicts.items()
    }
    write_summary(run.out / "summary.json", head, rows)
    document = {
        **head,
        "definitions": {name: {"verdict": verdict, "why": why} for name, (verdict, why) in verdicts.items()},
        "batches": [
            {"group": b.group, "files": len(b.files), "seconds": round(b.seconds, 1), "status": b.status}
            for b in run.batches
        ],
        "records": [
            record
            for own in records.values()
            for record in own
            if record.get("metrics") or record["outcome"] != "skipped"
        ],
    }
    (run.out / "results.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    write_failures(run.out / "failures.txt", records)
    return totals["failed"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=14)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--limit", type=float, default=540, help="Seconds for everything.")
    parser.add_argument("--process-limit", type=float, default=420, help="Seconds for one process.")
    parser.add_argument("--only", default="", help="A pattern that the names of Definitions must hold.")
    parser.add_argument("--prefer", action="append", default=[], help="KIND:PREFIX, such as sglang:moe_bf16.")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MAX_JOBS", "6")  # ninja's, in each of the processes that compile
    os.environ.setdefault("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take seconds to import
    try:
        versions = json.loads(subprocess.check_output([sys.executable, "-c", VERSIONS], timeout=120))
    except (subprocess.SubprocessError, ValueError) as error:
        versions = {"error": str(error)}
    say(json.dumps(versions))
    prefer = dict(reversed(text.split(":", 1)) for text in arguments.prefer)
    run = Run(
        dataset=arguments.dataset.resolve(),
        out=arguments.out.resolve(),
        work=Path(tempfile.mkdtemp(prefix="reference-tests-")),
        jobs=arguments.jobs,
        device=arguments.device,
        prefer=prefer,
        process_limit=arguments.process_limit,
        only=arguments.only,
    )
    run.fill()
    say(f"{sum(len(batch.files) for batch in run.batches)} files in {len(run.batches)} processes")
    run.go(arguments.limit - (time.monotonic() - BEGAN) - 10)
    return 1 if report(run, versions, time.monotonic() - BEGAN) else 0


BEGAN = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
