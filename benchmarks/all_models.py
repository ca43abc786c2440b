"""Onboard every config of a folder (default: every bundled model) and print one line each.

    python benchmarks/all_models.py [CONFIG_FOLDER] [--workspace DIR] [--shared] [--only NAME ...]

Columns: kernels; defined; executed; refused; disagreements between witnesses; operations nothing explains; seconds.
Each model has a dataset of its own unless --shared is given; at the end flashinfer-bench loads all of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from fib_tools.errors import FibError
from fib_tools.model.manifest import DefineStatus
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.onboard import OnboardResult, onboard_model
from fib_tools.phases.request import ModelOptions
from fib_tools.sources.registry import list_models

PACKAGES = ("fib-tools", "flashinfer-python", "transformers", "torch")


def subjects(folder: Path | None) -> Iterator[tuple[str, Path | None]]:
    if folder is None:
        for entry in list_models():
            if entry.config is not None:
                yield entry.repo_id, None
    else:
        for path in sorted(folder.glob("*.json")):
            yield path.stem.replace("__", "/"), path


def line(name: str, result: OnboardResult, seconds: float) -> tuple[str, dict[str, float]]:
    kernels = result.manifest.kernels
    done = [kernel for kernel in kernels if kernel.define_status in {DefineStatus.DEFINED, DefineStatus.EXISTING}]
    numbers = {
        "kernels": len(kernels),
        "defined": len(done),
        "executed": sum(bool(kernel.executed) for kernel in done),
        "refused": len(kernels) - len(done) + len(result.manifest.refused),
        "disagree": len(result.manifest.disagreements),
        "unexplained": len(result.manifest.unexplained),
        "seconds": round(seconds, 1),
    }
    return f"{name:48s} " + " ".join(f"{value:>11}" for value in numbers.values()), numbers


def load_with_peer(datasets: list[Path]) -> str:
    """Load the datasets with flashinfer-bench, and compare the number of Definitions with the files."""
    from flashinfer_bench.data import TraceSet

    loaded = sum(len(TraceSet.from_path(str(folder)).definitions) for folder in datasets)
    files = sum(len(list(folder.glob("definitions/*/*.json"))) for folder in datasets)
    return f"flashinfer-bench {version('flashinfer-bench')} loads {loaded} of {files} Definitions in {len(datasets)} datasets"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--only", nargs="+")
    options = parser.parse_args()
    workspace = options.workspace or Path(tempfile.mkdtemp(prefix="fib-models-"))
    print(
        ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        f"python {platform.python_version()}",
        f"{os.cpu_count()} cores",
    )
    print(
        f"{'model':48s} "
        + " ".join(
            f"{name:>11}"
            for name in ("kernels", "defined", "executed", "refused", "disagree", "unexplained", "seconds")
        )
    )
    totals: dict[str, float] = {}
    details: list[str] = []
    for name, config in subjects(options.folder):
        if options.only and not any(word.lower() in name.lower() for word in options.only):
            continue
        began = time.perf_counter()
        own = workspace if options.shared else workspace / name.replace("/", "__")
        context = Context(workspace=Workspace(root=own), offline=True)
        try:
            result = onboard_model(context, name, ModelOptions(config=config))
        except FibError as error:
            print(f"{name:48s} error: {error}", flush=True)
            totals["failed"] = totals.get("failed", 0) + 1
            continue
        text, numbers = line(name, result, time.perf_counter() - began)
        print(text, flush=True)
        totals = {key: round(totals.get(key, 0) + value, 1) for key, value in numbers.items()} | {
            "failed": totals.get("failed", 0)
        }
        details += [f"{name}: refused {entry.subject}: {entry.reason}" for entry in result.manifest.refused]
        details += [
            f"{name}: refused {k.name}: {k.define_reason}"
            for k in result.manifest.kernels
            if k.define_status is DefineStatus.REFUSED
        ]
        details += [f"{name}: disagreement {entry.subject}: {entry.chosen}" for entry in result.manifest.disagreements]
        details += [
            f"{name}: unexplained {entry.operation} in {entry.module} {entry.detail}"
            for entry in result.manifest.unexplained
        ]
        details += [f"{name}: note: {note}" for note in result.manifest.notes]
    print("total", totals)
    print(load_with_peer(sorted(workspace.rglob("flashinfer-trace"))))
    print(f"\nworkspace {workspace}\n" + "\n".join(details))


if __name__ == "__main__":
    main()
