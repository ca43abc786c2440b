"""Trace-dumps of four models with made-up weights, timed by stage: planned here, made on a GPU machine.

python benchmarks/trace_dump.py plan PLAN.json
python benchmarks/trace_dump.py run PLAN.json OUT [--seconds 520] [--jobs 5]
python benchmarks/trace_dump_report.py PLAN.json OUT

`run` needs what fib_tools.capture imports, pydantic alone, and a Python with SGLang.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.capture.engine import EngineOptions, RunOutcome, make_runs
from fib_tools.capture.runs import EngineRun, RunPlan
from fib_tools.errors import FibError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODELS = ("kimi-k2", "deepseek-v3", "qwen3-30b-a3b", "llama-3.2-3b")
WARM = "llama-3.2-3b"
KEPT = ("dumps", "raw", "calls", "notes", "kernels")
FILES = ("engine.log", "stages.json", "done.json", "progress.jsonl", "request.json")
MOST_BYTES = 4_000_000
"""Of one log; its end is kept."""
WARM_SECONDS = 60
"""What is kept free for the second dump."""


def plan(path: Path) -> None:
    from fib_tools.architecture.facts import read_facts
    from fib_tools.architecture.inventory import list_serving_points
    from fib_tools.phases.trace_plan import TraceSubject, plan_runs
    from fib_tools.sources.huggingface import load_config

    plans = {}
    for model in MODELS:
        source = load_config(model, offline=True)
        name = source.repo_id or source.slug
        subject = TraceSubject(
            model=source.slug,
            config=source.config,
            facts=read_facts(source.config, name=name),
            points=list_serving_points(name),
        )
        plans[source.slug] = plan_runs(subject).model_dump(mode="json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plans, indent=1), encoding="utf-8")
    for slug, document in plans.items():
        print(f"{slug}: {', '.join(run['name'] for run in document['runs'])}")


def load_plans(path: Path) -> dict[str, RunPlan]:
    return {slug: RunPlan.model_validate(item) for slug, item in json.loads(path.read_text(encoding="utf-8")).items()}


def order_runs(plans: dict[str, RunPlan]) -> list[EngineRun]:
    """One of each model first, so that what they share compiles once; the name leads to the folder."""
    longest = max(len(item.runs) for item in plans.values())
    ordered = [
        item.runs[place].model_copy(update={"name": f"{slug}/{item.runs[place].name}"})
        for place in range(longest)
        for slug, item in plans.items()
        if place < len(item.runs)
    ]
    return sorted(ordered, key=lambda run: run.variant != "default")


def run(options: argparse.Namespace) -> int:
    from fib_tools.host.env import engine_environment

    begun = time.monotonic()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="trace-dump-"))
    plans = load_plans(options.plan)
    runs = order_runs(plans)
    outcomes: list[RunOutcome] = []
    with hold_gpu(is_on=not options.no_lock) as lease:
        environment = {
            **engine_environment(),
            "MAX_JOBS": str(options.max_jobs),
            **(lease.environment if lease else {}),
        }

        def settings(deadline: float, jobs: int) -> EngineOptions:
            return EngineOptions(
                environment=environment,
                descriptors=lease.descriptors if lease else (),
                jobs=jobs,
                timeout=options.seconds,
                stage_timeout=options.seconds,
                deadline=deadline,
                report=lambda text: print(f"[{time.monotonic() - begun:6.1f} s] {text}", flush=True),
            )

        try:
            cold = begun + options.seconds - WARM_SECONDS
            outcomes += make_runs(runs, work, settings(cold, options.jobs))
            outcomes += run_failed(runs, outcomes, work, options, settings(cold, options.jobs))
            warm = next((item for item in runs if item.name.startswith(f"{WARM}/")), None)
            if warm is not None:
                again = warm.model_copy(update={"name": f"warm/{warm.name}"})
                outcomes += make_runs([again], work, settings(begun + options.seconds, 1))
        finally:
            pack(work, out / "trace-dump.tar.gz")
            text = write_table(outcomes, work, out, seconds=time.monotonic() - begun)
            print(text, flush=True)
    for outcome in outcomes:
        if outcome.error:
            print(f"\n{outcome.name}: {outcome.status}\n{outcome.error[-1500:]}", flush=True)
    return 0 if outcomes and all(item.status == "done" for item in outcomes) else 1


def run_failed(
    runs: Sequence[EngineRun],
    outcomes: Sequence[RunOutcome],
    work: Path,
    options: argparse.Namespace,
    settings: EngineOptions,
) -> tuple[RunOutcome, ...]:
    """Try what failed once more with other packages, such as an older FlashInfer."""
    failed = {outcome.name for outcome in outcomes if outcome.status in {"failed", "partial"}}
    if options.fallback is None or not failed:
        return ()
    again = [item.model_copy(update={"name": f"fallback/{item.name}"}) for item in runs if item.name in failed]
    environment = {**settings.environment, "PYTHONPATH": options.fallback}
    return make_runs(again, work, dataclasses.replace(settings, environment=environment))


def hold_gpu(*, is_on: bool) -> Any:
    if not is_on:
        return nullcontext()
    from fib_tools.host.gpu_lock import acquire

    @contextmanager
    def hold() -> Iterator[Any]:
        with ExitStack() as stack:
            try:
                lease = stack.enter_context(acquire(1, timeout=60, command="benchmarks/trace_dump.py"))
            except (FibError, OSError, ValueError) as error:
                print(f"WITHOUT THE GPU LOCK: {error}", flush=True)
                lease = None
            yield lease

    return hold()


def write_table(outcomes: Sequence[RunOutcome], work: Path, out: Path, *, seconds: float) -> str:
    stages = list(dict.fromkeys(stage for outcome in outcomes for stage in outcome.stages))
    lines = [" | ".join(["run", "status", "seconds", "dumps", *stages])]
    for outcome in outcomes:
        dumps = len(list((work / outcome.name / "dumps").rglob("*.json")))
        times = [f"{outcome.stages[stage]:.1f}" if stage in outcome.stages else "" for stage in stages]
        lines.append(" | ".join([outcome.name, outcome.status, f"{outcome.seconds:.1f}", str(dumps), *times]))
    document = {
        "seconds": round(seconds, 1),
        "machine": {"gpu": read_gpu(), "python": sys.version.split()[0], "platform": platform.platform()},
        "runs": [outcome.model_dump(mode="json") for outcome in outcomes],
    }
    (out / "table.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    text = "\n".join([*lines, f"{seconds:.0f} s in all"])
    (out / "table.txt").write_text(text + "\n", encoding="utf-8")
    return text


def read_gpu() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    except OSError:
        return ""


def pack(work: Path, target: Path) -> None:
    """Pack what tells of the runs; logs are cut to their end."""
    with tarfile.open(target, "w:gz") as archive:
        for path in sorted(list_files(work)):
            data = path.read_bytes()
            kept = data if path.suffix == ".json" or len(data) <= MOST_BYTES else data[-MOST_BYTES:]
            entry = tarfile.TarInfo(str(path.relative_to(work)))
            entry.size = len(kept)
            archive.addfile(entry, io.BytesIO(kept))


def list_files(work: Path) -> Iterator[Path]:
    for path in work.rglob("*"):
        if path.is_file() and (path.name in FILES or any(part in KEPT for part in path.relative_to(work).parts)):
            yield path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("plan").add_argument("plan", type=Path)
    running = commands.add_parser("run")
    running.add_argument("plan", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--seconds", type=float, default=520.0)
    running.add_argument("--jobs", type=int, default=5)
    running.add_argument("--max-jobs", type=int, default=8, help="compilers that one engine starts at once")
    running.add_argument("--fallback", help="PYTHONPATH for a second try of what failed")
    running.add_argument("--no-lock", action="store_true")
    options = parser.parse_args()
    if options.command == "plan":
        plan(options.plan)
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
