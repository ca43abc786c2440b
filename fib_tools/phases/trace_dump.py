"""Path A: SGLang serves the model with made-up weights, FlashInfer's traces are dumped, and go through the gate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fib_tools.capture.engine import RunOutcome, list_versions, make_runs
from fib_tools.capture.evidence import OtherCall, read_other_calls
from fib_tools.capture.runs import EngineRun, RunPlan
from fib_tools.gate.normalise import Normalised
from fib_tools.host.files import write_atomically
from fib_tools.host.locks import hold
from fib_tools.model.base import Model
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.kernel import Witness, WitnessSource
from fib_tools.model.manifest import Manifest, ManifestKernel
from fib_tools.model.tags import merge_tags
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases.candidates import list_tags
from fib_tools.phases.context import Context
from fib_tools.phases.dumps import Dump, read_dumps, run_gate
from fib_tools.phases.inventory import keep_survey, workspace_lock
from fib_tools.phases.manifests import Standing, add_witnesses, save_manifest
from fib_tools.phases.outcomes import DefineEntry, find_shared
from fib_tools.phases.request import ModelOptions
from fib_tools.phases.serving import (
    check_machine,
    check_runs,
    check_weights,
    describe_run,
    hold_gpus,
    list_not_covered,
    make_options,
    make_subject,
)
from fib_tools.phases.survey import survey_model
from fib_tools.phases.trace_plan import plan_runs
from fib_tools.phases.trace_report import Shown, Verdict, compare_kernels
from fib_tools.phases.trace_result import KernelLine, TraceDumpResult

__all__ = ["TraceRequest", "dump_model", "report_runs"]

_PURPOSE = "a trace-dump (fib define MODEL --path dump without --from-dir)"


class TraceRequest(Model):
    """How the engine is run."""

    gpus: int = 1
    weights: str | None = None
    timeout: float = 1800.0
    skip_existing: bool = True
    dry_run: bool = False


def dump_model(context: Context, model: str, options: ModelOptions, request: TraceRequest) -> TraceDumpResult:
    """Run the engine for every set of per-rank shapes of a model, and hold its kernels against the inventory.

    Raises:
        MissingDependencyError: SGLang is not installed, or no GPU is visible.
        LockedError: the GPUs stay taken.
    """
    weights = check_weights(context, request.weights)
    if not request.dry_run:
        check_machine(purpose=_PURPOSE, without="dumps made there are read anywhere with --from-dir DIR")
    survey = survey_model(context, model, options)
    with hold(workspace_lock(context), purpose="an onboarding"):
        context.sweep()
        standing = keep_survey(context, survey, options)
    plan = plan_runs(make_subject(survey), gpus=request.gpus, weights=weights, page_sizes=_list_page_sizes(standing))
    folder = context.workspace.root / "dumps" / standing.whole.model
    if request.dry_run:
        return _preview(context, standing, plan, folder=folder)
    check_runs(model, plan.runs, plan.not_covered)
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder / ".lock", purpose=f"a trace-dump of {standing.whole.model}"):
        served = f"{plan.model} with {weights or 'made-up weights'}"
        with hold_gpus(context, plan.runs, command=f"fib define {plan.model} --path dump", subject=served) as lease:
            rerun = not request.skip_existing
            engine = make_options(context, plan.runs, lease, timeout=request.timeout, rerun=rerun)
            outcomes = make_runs(plan.runs, folder, engine)
        return report_runs(context, standing, plan, folder=folder, outcomes=outcomes)


def _list_page_sizes(standing: Standing) -> list[int]:
    return sorted({size for kernel in standing.asked.kernels for size in kernel.page_sizes})


def _preview(context: Context, standing: Standing, plan: RunPlan, *, folder: Path) -> TraceDumpResult:
    lines = [describe_run(run, None) for run in plan.runs]
    return TraceDumpResult(
        subject=standing.asked.model,
        dataset=str(context.dataset.root),
        entries=(),
        runs=tuple(lines),
        not_covered=(*plan.not_covered, *list_not_covered(plan.runs)),
        folder=str(folder),
    )


def report_runs(
    context: Context, standing: Standing, plan: RunPlan, *, folder: Path, outcomes: Sequence[RunOutcome]
) -> TraceDumpResult:
    """Read what the runs left, compare it with the inventory, take the dumps through the gate, and note the witnesses."""
    shown, others, entries = _collect(plan.runs, folder)
    failures = {item.name: item.error.partition("\n")[0] for item in outcomes if item.error}
    verdict = compare_kernels(
        standing.asked.kernels,
        shown,
        others,
        runs=plan.runs,
        not_covered=plan.not_covered,
        failures=failures,
    )
    dumps = [_canonise(item.dump, verdict.matches.get(place)) for place, item in enumerate(shown)]
    tags = [_list_tags(standing.asked, verdict.matches.get(place)) for place in range(len(shown))]
    with hold(workspace_lock(context), purpose=f"staging the dumps of {standing.asked.model}"):
        context.sweep()
        kept = _choose(shown, verdict.lines)
        entries += run_gate(context, [dumps[place] for place in kept], tags=[tags[place] for place in kept])
        save_manifest(context.workspace, standing.name, _witness(standing.whole, verdict, outcomes))
    counts = {run.name: sum(item.run.name == run.name for item in shown) for run in plan.runs}
    by_name = {outcome.name: outcome for outcome in outcomes}
    result = TraceDumpResult(
        subject=standing.asked.model,
        dataset=str(context.dataset.root),
        entries=tuple(entries),
        shared=find_shared(context, {entry.name for entry in entries}),
        kernels=verdict.lines,
        runs=tuple(describe_run(run, by_name.get(run.name), dumps=counts[run.name]) for run in plan.runs),
        not_covered=(*plan.not_covered, *list_not_covered(plan.runs)),
        folder=str(folder),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.json", canonical_bytes(result))
    return result


def _collect(runs: Sequence[EngineRun], folder: Path) -> tuple[list[Shown], list[OtherCall], list[DefineEntry]]:
    """Read the dumps of every run, each content once, and the calls outside of FlashInfer's traces."""
    shown: list[Shown] = []
    others: list[OtherCall] = []
    refused: list[DefineEntry] = []
    seen: set[tuple[str, str]] = set()
    for run in runs:
        own = folder / run.name
        others += read_other_calls(own, run=run.name) if own.is_dir() else ()
        if not any((own / "dumps").rglob("*.json")):
            continue
        dumps, wrong = read_dumps(own / "dumps")
        refused += [entry for entry in wrong if entry not in refused]
        for dump in dumps:
            key = (run.name, _content(dump))
            if key not in seen:
                seen.add(key)
                shown.append(Shown(dump=dump, run=run))
    return shown, others, refused


def _content(dump: Dump) -> str:
    """Identify a dump by what it says; ranks of one run, and calls that were repaired otherwise, say the same."""
    data = {name: value for name, value in dump.raw.data.items() if name != "fib_repairs"}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _canonise(dump: Dump, kernel: ManifestKernel | None) -> Dump:
    """Put the inventory's own Definition in the place of one that was written anew: scales agree to the last digit."""
    item = dump.normalised
    if kernel is None or not item.is_canonical or item.definition is None:
        return dump
    built = get_kernel_type(kernel.kernel).build(kernel.parameters)
    definition = built.model_copy(update={"tags": merge_tags(built.tags, item.definition.tags)})
    changed = Normalised(definition=definition, changes=item.changes, recognised=item.recognised, is_canonical=True)
    return Dump(raw=dump.raw, normalised=changed)


def _list_tags(manifest: Manifest, kernel: ManifestKernel | None) -> list[str]:
    if kernel is not None:
        return list_tags(manifest, kernel, kernel.fi_name)
    return [f"model:{manifest.model}"]


def _choose(shown: Sequence[Shown], lines: Sequence[KernelLine]) -> list[int]:
    """Choose the dumps for the gate: each content once, and none that the overrides alone made."""
    first: dict[str, int] = {}
    for place, item in enumerate(shown):
        if not _is_set_aside(item, lines):
            first.setdefault(_content(item.dump), place)
    return list(first.values())


def _is_set_aside(item: Shown, lines: Sequence[KernelLine]) -> bool:
    name = item.dump.definition.name
    return any(line.status == "set aside" and line.name == name and item.run.name in line.runs for line in lines)


def _witness(manifest: Manifest, verdict: Verdict, outcomes: Sequence[RunOutcome]) -> Manifest:
    """Note in the manifest what the engine showed."""
    versions = next((item.versions for item in outcomes if item.versions), list_versions())
    said = ", ".join(f"{name} {versions[name]}" for name in ("sglang", "flashinfer-python") if name in versions)
    kernels = [_with_witness(kernel, verdict.witnesses, said) for kernel in manifest.kernels]
    return manifest.model_copy(update={"kernels": tuple(kernels)})


def _with_witness(kernel: ManifestKernel, seen: Mapping[str, str], versions: str) -> ManifestKernel:
    detail = seen.get(kernel.definition or kernel.name)
    if detail is None:
        return kernel
    witness = Witness(source=WitnessSource.DUMP, detail=f"{detail} with {versions}" if versions else detail)
    own = tuple(item for item in kernel.witnesses if item.source is not WitnessSource.DUMP)
    return kernel.model_copy(update={"witnesses": add_witnesses(own, (witness,), source=WitnessSource.DUMP)})
