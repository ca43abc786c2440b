"""Onboard two models on three hops: phases 0 to 2 on a laptop, 3 on a machine with a GPU, 4 on the laptop again.

python benchmarks/closed_pipeline.py laptop-before --out WORKSPACE [--models llama-3.2-3b qwen3-30b-a3b] [--tp 1]
python benchmarks/closed_pipeline.py gpu --workspace WORKSPACE --max-seconds 280 [--pack OUT/workspace.tar.xz]
python benchmarks/closed_pipeline.py laptop-after --workspace WORKSPACE [--dummy-weights] [--results benchmarks/results/closed_pipeline.txt]

The workspace is copied from hop to hop (`--pack` writes it as one archive; `--unpack ARCHIVE` takes one in), and is all
that travels: its folder `hops` keeps what each hop began with, ended with, and took. The `gpu` hop needs SGLang, FlashInfer
and no network; it begins nothing new after `--max-seconds`, and stops there what still runs, so that a second `gpu` hop goes
on with the rest. `--device cpu` tries that hop without a GPU: references alone are tested, nothing is served or measured.
`laptop-after` shows the requests of phase 4, sends them to a Hub and a GitHub that stand in on loopback (those of the
tests), and does it once more, which must write nothing.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fib_tools.dataset.layout import Kind  # noqa: E402  # the path must be there first
from fib_tools.dataset.store import Dataset  # noqa: E402
from fib_tools.evaluate.report.report_reading import read_measurements  # noqa: E402
from fib_tools.model.manifest import Manifest  # noqa: E402
from fib_tools.model.progress import sum_times  # noqa: E402
from fib_tools.phases.context import Workspace  # noqa: E402
from fib_tools.phases.manifests import find_manifest, list_manifests, manifest_model  # noqa: E402

VERSIONS = ("torch", "sglang", "sglang-kernel", "flashinfer-python", "transformers")
MODELS = ("llama-3.2-3b", "qwen3-30b-a3b")
HOPS = "hops"
LEFT_BEHIND = {"sglang", "flashinfer", "sgl-cookbook"}
"""Clones: no later hop reads them."""
FIRST_SHARE = 0.64
"""Of the time, for the first model: it compiles what the second one finds compiled."""
SPARE_SECONDS = 15.0
"""For what a run writes when it is stopped, and for the archive."""


def fib(*words: str, workspace: Path, seconds: float | None, log: Path, outside: dict[str, str]) -> dict[str, Any]:
    """Run one of our commands for so long; give what it prints as JSON, its exit status and the seconds it took.

    Without an outside, which is told by the environment, it runs offline.
    """
    command = [sys.executable, "-m", "fib_tools", *words, "--workspace", str(workspace), "--json"]
    command += [] if outside else ["--offline"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    begun = time.perf_counter()
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stream, env={**os.environ, "PYTHONPATH": paths, **outside}
        )
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                said, _ = process.communicate(timeout=SPARE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
    found = json.loads(said) if said.strip() else {}
    return {
        "command": " ".join(["fib", *words]),
        "status": process.returncode,
        "seconds": round(time.perf_counter() - begun, 1),
        "answer": found,
    }


@dataclass
class Outside:
    """A Hub and a GitHub that stand in, and how to reach them."""

    hub: Any
    github: Any
    environment: dict[str, str]

    def count(self) -> dict[str, int]:
        return {"Hugging Face": len(self.hub.writes), "GitHub": len(self.github.writes)}


@contextmanager
def stand_in() -> Iterator[Outside]:
    """Serve the tests' Hub (a git repository behind its API) and GitHub on loopback."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fake_hub import FakeHub
    from loopback import serve
    from scripted_github import Repo, ScriptedGitHub

    repos = ("flashinfer-ai/flashinfer-bench", "flashinfer-ai/flashinfer", "sgl-project/sglang")
    tokens = {"HF_TOKEN": "hf_" + "standin0" * 4, "GITHUB_TOKEN": "ghp_" + "standin0" * 5}
    with TemporaryDirectory(prefix="fib-outside-") as folder:
        hub = FakeHub(Path(folder), token=tokens["HF_TOKEN"])
        github = ScriptedGitHub(*(Repo(name=name) for name in repos), token=tokens["GITHUB_TOKEN"])
        with serve(hub), serve(github):
            yield Outside(
                hub=hub,
                github=github,
                environment={
                    **tokens,
                    "HF_ENDPOINT": hub.url,
                    "GITHUB_API_URL": github.url,
                    "HF_HUB_DISABLE_XET": "1",
                    "NO_PROXY": "127.0.0.1,localhost",
                },
            )


def take_stock(workspace: Path) -> dict[str, Any]:
    """Say what the manifests and the dataset hold."""
    found = (
        find_manifest(Workspace(root=workspace), model)
        for model in sorted({manifest_model(name) for name in list_manifests(Workspace(root=workspace))})
    )
    manifests = [manifest for _, manifest in filter(None, found)]
    return {"models": {manifest.model: describe(manifest) for manifest in manifests}, "dataset": count(workspace)}


def describe(manifest: Manifest) -> dict[str, Any]:
    steps: dict[str, collections.Counter[str]] = {}
    for kernel in manifest.kernels:
        for step, record in kernel.steps.items():
            steps.setdefault(step.value, collections.Counter())[record.status] += 1
    return {
        "kernels": dict(collections.Counter(kernel.define_status.value for kernel in manifest.kernels)),
        "steps": {step: dict(counts) for step, counts in steps.items()},
        "seconds": {str(phase): spent for phase, spent in sum_times(manifest.times).items()},
        "step seconds": {time.step.value: time.seconds for time in manifest.times if time.step},
        "machines": sorted({time.machine for time in manifest.times}),
    }


def count(workspace: Path) -> dict[str, Any]:
    root = workspace / "flashinfer-trace"
    if not root.is_dir():
        return {}
    dataset = Dataset(root)
    loaded, _ = dataset.load_definitions()
    origins: collections.Counter[str] = collections.Counter()
    for definition in loaded.values():
        for workload in dataset.load_workloads(definition.op_type, definition.name):
            origins[workload.origin or "unknown"] += 1
    reading = read_measurements(dataset)
    shares = sorted(each.percent for each in reading.measurements if each.passed and each.percent is not None)
    kinds = collections.Counter(file.location.kind for file in dataset.files() if file.location)
    return {
        "Definitions": len(loaded),
        "verified": sum("status:verified" in definition.tags for definition in loaded.values()),
        "Workloads": dict(origins),
        "Solutions": kinds[Kind.SOLUTION],
        "Traces": len(reading.measurements),
        "Traces passed": sum(each.passed for each in reading.measurements),
        "% of the limit": {"median": round(shares[len(shares) // 2], 1), "best": round(shares[-1], 1)}
        if shares
        else {},
    }


def run_hop(
    name: str, options: argparse.Namespace, commands: list[tuple[str, ...]], outside: Outside | None = None
) -> list[dict[str, Any]]:
    """Run a hop's commands, and keep what it began with, what each of them took, and what it ended with."""
    workspace: Path = options.workspace
    folder = workspace / HOPS
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    before, done = take_stock(workspace), []
    for place, words in enumerate(commands):
        seconds, limit = None, ()
        if options.max_seconds:
            seconds = max(1.0, options.max_seconds - SPARE_SECONDS - (time.perf_counter() - begun))
            share = FIRST_SHARE if place < len(commands) - 1 else 1.0
            limit = ("--max-minutes", f"{seconds * share / 60:.3f}")
        reached = outside.environment if outside and "--yes" in words else {}
        written = outside.count() if outside else {}
        one = fib(*words, *limit, workspace=workspace, seconds=seconds, log=folder / f"{name}.log", outside=reached)
        if reached and outside:
            one["writes"] = {service: number - written[service] for service, number in outside.count().items()}
        done.append(one)
        print(f"$ {one['command']}\n  exit {one['status']} after {one['seconds']} s", flush=True)
        one["said"] = list(describe_answer(one["answer"]))
        print("\n".join(f"  {line}" for line in one["said"]), flush=True)
    after = take_stock(workspace)
    record = {
        "hop": name,
        "machine": describe_machine(VERSIONS),
        "seconds": round(time.perf_counter() - begun, 1),
        "runs": [{key: value for key, value in one.items() if key != "answer"} for one in done],
        "before": before,
        "after": after,
    }
    number = len(list(folder.glob("*.json"))) + 1
    (folder / f"{number}-{name}.json").write_text(json.dumps(record, indent=1))
    print(f"before: {json.dumps(before)}\nafter:  {json.dumps(after)}\n{name}: {record['seconds']} s", flush=True)
    if options.pack:
        pack(workspace, options.pack)
    return done


def describe_answer(answer: dict[str, Any]) -> Iterator[str]:
    """Say what phases 3 and 4 did."""
    collected = answer.get("collected") or {}
    for line in collected.get("steps", ()):
        problem = f"  {line['problem'][:300]}" if line["problem"] else ""
        yield f"{line['step']:10}{line['kernels']:>4} open {line['seconds']:>8.1f} s  {spell(line['outcomes'])}{problem}"
    if collected.get("stopped"):
        yield str(collected["stopped"])
    submitted = answer.get("submitted")
    if submitted:
        entries = collections.Counter(f"{entry['kind']} {entry['status']}" for entry in submitted.get("entries", ()))
        checks = collections.Counter(failure["check"] for failure in submitted.get("failures", ()))
        yield f"{spell(entries)}; {len(submitted.get('requests', ()))} requests {'sent' if submitted['sent'] else 'shown'}"
        if checks:
            yield f"held back by the checklist: {spell(checks)}"
    if answer.get("problem"):
        yield str(answer["problem"])[:600]


def pack(workspace: Path, target: Path) -> None:
    """Write the workspace as one archive, without clones."""
    target.parent.mkdir(parents=True, exist_ok=True)

    def keep(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(entry.name).parts
        is_left = bool(LEFT_BEHIND & set(parts[:1])) or entry.name.endswith((".lock", ".holder"))
        return None if is_left or not (entry.isfile() or entry.isdir()) else entry

    with tarfile.open(target, "w:xz") as archive:
        archive.add(workspace, arcname=".", filter=keep)
    print(f"packed: {target.stat().st_size / 1e6:.2f} MB")


def unpack(source: Path, workspace: Path) -> None:
    workspace.mkdir(parents=True, exist_ok=True)
    with tarfile.open(source) as archive:
        # by name: the first patch releases of Python 3.10 and 3.11 have no filters
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        archive.extractall(workspace)  # noqa: S202  # our own archive


def write_results(workspace: Path, path: Path | None) -> None:
    """Write all hops as one text."""
    lines = [
        "$ python benchmarks/closed_pipeline.py laptop-before | gpu | laptop-after  (the workspace carried between them)"
    ]
    ends: list[dict[str, Any]] = []
    for file in sorted((workspace / HOPS).glob("*.json"), key=lambda file: int(file.name.partition("-")[0])):
        record = json.loads(file.read_text())
        lines += [
            "",
            f"== {record['hop']}: {record['seconds']} s",
            *(f"# {text}" for text in record["machine"].splitlines()),
        ]
        for run in record["runs"]:
            writes = f", writes: {spell(run['writes'])}" if "writes" in run else ""
            lines.append(f"{run['command']}: exit {run['status']}, {run['seconds']} s{writes}")
            lines += [f"  {text}" for text in run.get("said", ())]
        if ends:
            said = "as they were after the hop before" if record["before"] == ends[-1] else "changed on the way"
            lines.append(f"manifests and dataset before: {said}")
        ends.append(record["after"])
        for when in ("after",) if len(ends) > 1 else ("before", "after"):
            stock = record[when]
            for model, held in stock["models"].items():
                steps = "; ".join(f"{step}: {spell(counts)}" for step, counts in held["steps"].items())
                lines.append(f"manifest {when}, {model}: kernels {spell(held['kernels'])}{f'; {steps}' * bool(steps)}")
            lines.append(f"dataset {when}: {spell(stock['dataset']) or 'none'}")
    last = take_stock(workspace)["models"]
    lines += ["", "seconds by phase, from the manifests"]
    phases = sorted({phase for held in last.values() for phase in held["seconds"]})
    lines.append(f"{'model':24}" + "".join(f"{'phase ' + phase:>10}" for phase in phases) + "  steps of phase 3")
    for model, held in last.items():
        steps = ", ".join(f"{step} {seconds:.0f}" for step, seconds in held["step seconds"].items())
        lines.append(
            f"{model:24}" + "".join(f"{held['seconds'].get(phase, 0):>10.1f}" for phase in phases) + f"  {steps}"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if path is not None:
        path.write_text(text, encoding="utf-8")


def spell(counts: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} ({spell(value) or 'none'})" if isinstance(value, dict) else f"{value} {key}"
        for key, value in counts.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hop", choices=("laptop-before", "gpu", "laptop-after"))
    parser.add_argument("--workspace", "--out", type=Path, required=True, dest="workspace")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--tp", default="1", help="of laptop-before: one small set of serving configurations")
    parser.add_argument("--op-types", help="of laptop-before and gpu: only these")
    parser.add_argument("--max-seconds", type=float, help="of gpu")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="of gpu")
    parser.add_argument("--skip-steps", default="", help="of gpu: such as calibrate")
    parser.add_argument("--num-samples", type=int, default=8, help="of gpu: Workloads of one Definition at most")
    parser.add_argument("--batch-sizes", default="1,16,64", help="of gpu")
    parser.add_argument("--osl", type=int, default=8, help="of gpu")
    parser.add_argument(
        "--group", default="definition", choices=("model", "op_type", "definition"), help="of laptop-after"
    )
    parser.add_argument(
        "--dummy-weights", action="store_true", help="of laptop-after: take Workloads of made-up weights"
    )
    parser.add_argument("--pack", type=Path, help="write the workspace there at the end")
    parser.add_argument("--unpack", type=Path, help="take this archive as the workspace")
    parser.add_argument("--results", type=Path, help="of laptop-after")
    options = parser.parse_args()
    if options.unpack:
        unpack(options.unpack, options.workspace)
    chosen = ("--op-types", options.op_types) if options.op_types else ()
    if options.hop == "laptop-before":
        words = [("onboard", model, "--tp-list", options.tp, "--phases", "0,1,2", *chosen) for model in options.models]
    elif options.hop == "gpu":
        traffic = ("--batch-sizes", options.batch_sizes, "--osl", str(options.osl))
        how = ("--device", options.device, "--num-samples", str(options.num_samples), *traffic, *chosen)
        skipped = ("--skip-steps", options.skip_steps) if options.skip_steps else ()
        words = [("onboard", model, "--phases", "3", *how, *skipped) for model in options.models]
    else:
        how = ("--group", options.group, *(("--dummy-weights",) if options.dummy_weights else ()))
        shown = [("onboard", model, "--phases", "4", *how) for model in options.models]
        # a second time, to see that it writes nothing
        words = [*shown, *2 * [(*command, "--yes") for command in shown]]
    with stand_in() if options.hop == "laptop-after" else nullcontext() as outside:
        done = run_hop(options.hop, options, words, outside)
    if options.hop == "laptop-after":
        write_results(options.workspace, options.results)
    return 0 if all(one["status"] == 0 for one in done) else 1


if __name__ == "__main__":
    sys.exit(main())
