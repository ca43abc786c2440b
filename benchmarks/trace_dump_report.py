"""What came back from `benchmarks/trace_dump.py run`, through the gate and against the inventory; needs no GPU.

python benchmarks/trace_dump_report.py PLAN.json OUT [--workspace DIR]

Every model goes twice: its dumps alone, so that each one is staged and executed, and after its templates, so that the
gate says which of the dumps it knows already as the same kernel.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fib_tools.capture.engine import RunOutcome
from fib_tools.capture.runs import RunPlan
from fib_tools.host.locks import hold
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.define import define_model
from fib_tools.phases.inventory import keep_survey, workspace_lock
from fib_tools.phases.request import DEFAULTS
from fib_tools.phases.survey import survey_model
from fib_tools.phases.trace_dump import report_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fib_tools.phases.outcomes import DefineEntry
    from fib_tools.phases.trace_result import TraceDumpResult


def load_stages(folder: Path) -> RunOutcome | None:
    path = folder / "stages.json"
    return RunOutcome.model_validate_json(path.read_bytes()) if path.exists() else None


def take_fallbacks(folder: Path) -> None:
    """Put a run with other packages in the place of the one that failed before it."""
    for path in sorted((folder / "fallback").glob("*/*")):
        own = folder / path.relative_to(folder / "fallback")
        outcome = load_stages(path)
        if outcome is not None and outcome.status in {"done", "partial"}:
            shutil.rmtree(own, ignore_errors=True)
            path.rename(own)
            print(f"{own.relative_to(folder)}: with {outcome.versions}")


def read_outcomes(plan: RunPlan, folder: Path) -> list[RunOutcome]:
    lost = RunOutcome(name="", status="failed", seconds=0, error="nothing came back")
    return [(load_stages(folder / run.name) or lost).model_copy(update={"name": run.name}) for run in plan.runs]


def hold_against(context: Context, plan: RunPlan, folder: Path) -> TraceDumpResult:
    context.workspace.create()
    survey = survey_model(context, plan.model, DEFAULTS)
    with hold(workspace_lock(context), purpose="a report"):
        standing = keep_survey(context, survey, DEFAULTS)
    return report_runs(context, standing, plan, folder=folder, outcomes=read_outcomes(plan, folder))


def count_valid(documents: Iterable[dict[str, object]]) -> tuple[int, int, Counter[str]]:
    """Count what flashinfer-bench takes as a Definition, of how many, and why it refuses the others."""
    from flashinfer_bench.data import Definition
    from pydantic import ValidationError

    accepted, total, reasons = 0, 0, Counter[str]()
    for document in documents:
        total += 1
        try:
            Definition.model_validate(document)
            accepted += 1
        except (ValidationError, ValueError) as error:
            lines = [line.strip().partition(" [type=")[0] for line in str(error).splitlines()]
            said = " ".join(line for line in lines[1:3] if not line.startswith("For further information"))
            reasons[said.partition(", 'float16'")[0]] += 1
    return accepted, total, reasons


def read_unique(paths: Iterable[Path]) -> list[dict[str, object]]:
    return list({path.read_text(encoding="utf-8"): json.loads(path.read_bytes()) for path in paths}.values())


def print_gate(context: Context, folder: Path, entries: Sequence[DefineEntry]) -> dict[str, str]:
    accepted, total, reasons = count_valid(read_unique(sorted(folder.glob("*/raw/*/*.json"))))
    print(f"raw dumps that differ: {total}; flashinfer-bench takes {accepted}")
    for reason, count in reasons.most_common():
        print(f"  {count:3} {reason}")
    staged = sorted((context.dataset.root / "definitions").glob("*/*.json"))
    valid, number, wrong = count_valid(read_unique(staged))
    counts = Counter(entry.status for entry in entries)
    ran = sum(bool(entry.executed) for entry in entries)
    print(
        f"dumps at the gate: {len(entries)}: {', '.join(f'{count} {status}' for status, count in counts.items())}; "
        f"executed {ran} of {counts['defined']}; of {number} staged flashinfer-bench takes {valid}"
    )
    for entry in entries:
        if entry.status != "defined":
            print(f"  {entry.status}: {entry.name}: {entry.reason}")
    for reason, count in wrong.most_common():
        print(f"  {count:3} {reason}")
    return {"raw valid": f"{accepted} of {total}", "valid": f"{valid} of {number}", "executed": f"{ran} of {number}"}


def print_agreement(result: TraceDumpResult) -> dict[str, str]:
    counts = Counter(line.status for line in result.kernels)
    known = sum(entry.status == "existing" for entry in result.entries)
    print(f"kernels: {', '.join(f'{count} {status}' for status, count in counts.most_common())}")
    print(f"dumps that the gate knows as the template path's own: {known} of {len(result.entries)}")
    for entry in result.entries:
        if entry.status != "existing":
            print(f"  {entry.status}: {entry.name}: {entry.reason}")
    for line in result.kernels:
        print(f"{line.name} | {line.status} | {', '.join(line.runs)} | {line.detail}")
    for item in dict.fromkeys(result.not_covered):
        print(f"not covered: {item.subject}: {item.reason}")
    words = ("confirmed", "corrected", "seen", "not seen", "new", "set aside", "differs")
    return {
        "as templates": f"{known} of {len(result.entries)}",
        "listed": str(len(result.kernels) - counts["new"] - counts["set aside"]),
        **{word: str(counts[word]) for word in words},
    }


def print_summary(rows: dict[str, dict[str, str]]) -> None:
    columns = list(next(iter(rows.values())))
    print("\n" + " | ".join(["model", *columns]))
    for slug, row in rows.items():
        print(" | ".join([slug, *(row[column] for column in columns)]))


def print_runs(table: Path) -> None:
    document = json.loads(table.read_text(encoding="utf-8"))
    runs = [RunOutcome.model_validate(item) for item in document["runs"]]
    stages = list(dict.fromkeys(stage for item in runs for stage in item.stages))
    print("run | status | seconds | " + " | ".join(stages))
    for item in runs:
        times = [f"{item.stages[stage]:.1f}" if stage in item.stages else "" for stage in stages]
        print(" | ".join([item.name, item.status, f"{item.seconds:.1f}", *times]))
    print(f"{document['seconds']} s in all; {document['machine']['gpu']}; {runs[0].versions}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workspace", type=Path)
    options = parser.parse_args()
    root = (options.workspace or Path(tempfile.mkdtemp(prefix="trace-report-"))).resolve()
    folder = root / "runs"
    with tarfile.open(options.out / "trace-dump.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    take_fallbacks(folder)
    print_runs(options.out / "table.json")
    plans = json.loads(options.plan.read_text(encoding="utf-8"))
    documents, rows = {}, {}
    for slug, item in plans.items():
        plan = RunPlan.model_validate(item)
        alone = Context(workspace=Workspace(root=root / "alone" / slug), offline=True)
        print(f"\n== {slug}")
        rows[slug] = print_gate(alone, folder / slug, hold_against(alone, plan, folder / slug).entries)
        after = Context(workspace=Workspace(root=root / "after" / slug), offline=True)
        start = time.monotonic()
        defined = define_model(after, slug)
        print(f"template path: {defined.count_text()}, {time.monotonic() - start:.0f} s")
        result = hold_against(after, plan, folder / slug)
        rows[slug] |= print_agreement(result)
        documents[slug] = result.model_dump(mode="json")
    print_summary(rows)
    (root / "trace_report.json").write_text(json.dumps(documents, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
