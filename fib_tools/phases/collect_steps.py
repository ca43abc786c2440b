"""The steps of phase 3, each done by the command of its own: tests, baselines, Workloads, calibration, measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fib_tools.dataset.store import Dataset
from fib_tools.errors import MissingDependencyError
from fib_tools.evaluate.engines.items import hash_definition
from fib_tools.model.canonical import content_hash
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import Manifest
from fib_tools.model.progress import Step
from fib_tools.model.solution import BASELINE, Solution
from fib_tools.op_types.sizes import SIZES
from fib_tools.phases.baselines import write_baselines
from fib_tools.phases.bench import benchmark_kernels
from fib_tools.phases.bench_result import BenchRow
from fib_tools.phases.calibrate import calibrate_definitions
from fib_tools.phases.collect import collect_workloads
from fib_tools.phases.collect_options import CollectOptions
from fib_tools.phases.collect_record import find_records, load_manifest
from fib_tools.phases.collect_result import CollectResult
from fib_tools.phases.context import Context
from fib_tools.phases.reference_tests import write_or_run_tests
from fib_tools.phases.request import ModelOptions
from fib_tools.phases.serving_options import ServingOptions
from fib_tools.phases.size_workloads import write_size_workloads
from fib_tools.phases.time_budget import TimeBudget

__all__ = ["FAILED", "NO_ENGINE", "STEPS", "Outcomes", "Work", "describe_basis", "shorten"]

Outcomes = Mapping[str, tuple[str, str]]
"""By Definition: a status, and figures or a reason."""

FAILED = "failed"
NO_ENGINE = "no engine"
"""Two ends of a step that are tried again."""

_AT_ONCE = 16
"""Definitions whose tests run between two looks at the clock; what they said is on the disk by then."""
_LONGEST_DETAIL = 300
_LEAST_SECONDS = 10.0
"""That a run of the engine is given, however late it is."""
_VERIFIED = "status:verified"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What the steps work on."""

    context: Context
    dataset: Dataset
    manifest: Manifest
    definitions: Mapping[str, Definition]
    """By name: those of the manifest that are in the dataset."""
    options: ModelOptions
    how: CollectOptions
    budget: TimeBudget
    skip_existing: bool = True


def _test(work: Work, names: Sequence[str], write: Callable[[Outcomes], None]) -> None:
    """Compare references with real kernels; those that were found to agree before are believed."""
    believed = [
        name
        for name in names
        if work.skip_existing and work.how.device == "cuda" and _VERIFIED in work.definitions[name].tags
    ]
    if believed:
        write(dict.fromkeys(believed, ("verified", "before")))
    left = [name for name in names if name not in believed]
    if left:
        write_or_run_tests(work.context, "write", definitions=tuple(left))
    for start in range(0, len(left), _AT_ONCE):
        work.budget.check()
        part = tuple(left[start : start + _AT_ONCE])
        result = write_or_run_tests(work.context, "run", definitions=part, device=work.how.device)
        write({entry.name: (entry.status, shorten(entry.reason)) for entry in result.entries})


def _write_baselines(work: Work, names: Sequence[str], write: Callable[[Outcomes], None]) -> None:
    result = write_baselines(work.context, definitions=tuple(names))
    found: dict[str, tuple[str, str]] = {}
    for entry in result.entries:
        status = "written" if entry.status == "unchanged" else entry.status
        before = found.get(entry.definition)
        detail = shorten(entry.solution or entry.reason)
        if before is None or status == "refused":
            found[entry.definition] = (status, detail)
        else:
            found[entry.definition] = (before[0], shorten(f"{before[1]}, {detail}"))
    write(found)


def _collect(work: Work, names: Sequence[str], write: Callable[[Outcomes], None]) -> None:
    """Serve the model; without a GPU or without SGLang nothing is collected, and that is said."""
    if work.how.device == "cpu":
        write(dict.fromkeys(names, (NO_ENGINE, "a CPU serves no model")))
        return
    left = work.budget.left
    serving = ServingOptions(**{name: getattr(work.how, name) for name in ServingOptions.model_fields})
    if left is not None:
        serving = serving.model_copy(update={"timeout": max(_LEAST_SECONDS, min(serving.timeout, left))})
    try:
        result = collect_workloads(
            work.context,
            work.manifest.repo_id or work.manifest.model,
            work.options,
            serving,
            definitions=tuple(names),
            num_samples=work.how.num_samples,
        )
    except MissingDependencyError as error:
        write(dict.fromkeys(names, (NO_ENGINE, shorten(str(error)))))
        return
    if any(run.status == "interrupted" for run in result.runs):
        raise KeyboardInterrupt  # its Workloads are kept, and the model is served again by the next run
    unknown = dict.fromkeys(names, ("no call", "of no known kernel type"))
    write({**unknown, **{name: outcome for name, outcome in _read_collected(result) if name in names}})


def _read_collected(result: CollectResult) -> Iterator[tuple[str, tuple[str, str]]]:
    for entry in result.entries:
        status = "written" if entry.status == "unchanged" else entry.status
        detail = f"{entry.workloads} Workloads of {entry.calls} calls ({result.origin})"
        yield entry.definition, (status, shorten("; ".join([detail, *entry.rejected])))
    failed = [f"{run.name}: {run.status}: {run.error}" for run in result.runs if run.has_failed]
    for name in result.not_seen:
        yield name, (FAILED, shorten("; ".join(failed))) if failed else ("no call", "")


def _make_sizes(work: Work, names: Sequence[str], write: Callable[[Outcomes], None]) -> None:
    chosen = [work.definitions[name] for name in names]
    entries = write_size_workloads(work.context, work.dataset, chosen, SIZES)
    known = find_records(load_manifest(work.context, work.manifest.model)[1], Step.SIZES)
    write(
        {
            entry.definition: (entry.status, shorten("; ".join((*entry.notes, *entry.rejected))))
            for entry in entries
            if entry.status != "kept" or entry.definition not in known
        }
    )


def _calibrate(work: Work, names: Sequence[str], write: Callable[[Outcomes], None]) -> None:
    context = work.budget.watch(work.context)
    result = calibrate_definitions(context, definitions=tuple(names), device=work.how.device)
    write(
        {
            entry.name: (
                "calibrated" if entry.status == "kept" else entry.status,
                shorten(entry.reason or entry.basis),
            )
            for entry in result.entries
        }
    )


def _bench(work: Work, names: Sequence[str], write: Callable[[Outcomes], None]) -> None:
    """Measure the baselines; what was measured before is not measured again."""
    idle = {name: why for name in names if (why := _find_idle(work, name))}
    if idle:
        write({name: ("nothing to measure", why) for name, why in idle.items()})
    busy = tuple(name for name in names if name not in idle)
    if not busy:
        return
    own = (each.name for name in busy for each in _load_baselines(work, work.definitions[name]))
    result = benchmark_kernels(
        work.budget.watch(work.context),
        busy,
        authors=(BASELINE,),
        solutions=tuple(own) if work.how.device == "cpu" else None,
        device=work.how.device,
        gpus=work.how.gpus if work.how.device == "cuda" else None,
        resume=True,
    )
    rows: dict[str, list[BenchRow]] = {name: [] for name in busy}
    for row in result.evaluations:
        rows[row.definition].append(row)
    why = "; ".join(result.failures[:1]) or f"no baseline is for {result.hardware}"
    lost = FAILED if result.failures else "nothing to measure"
    write({name: _describe_rows(own) if own else (lost, shorten(why)) for name, own in rows.items()})


def _find_idle(work: Work, name: str) -> str:
    """Say why there is nothing to measure of a Definition."""
    definition = work.definitions[name]
    if not _load_baselines(work, definition):
        return "no baseline for a CPU" if work.how.device == "cpu" else "no baseline"
    return "" if work.dataset.load_workloads(definition.op_type, name) else "no Workload"


def _load_baselines(work: Work, definition: Definition) -> list[Solution]:
    """Load a Definition's baselines; on a CPU, those that are for one, since a kernel of a GPU cannot but fail there."""
    found, _ = work.dataset.read_solutions(definition.op_type, definition.name)
    is_gpu = work.how.device == "cuda"
    return [each for each in found if each.author == BASELINE and (is_gpu or "cpu" in each.spec.target_hardware)]


def _describe_rows(rows: Sequence[BenchRow]) -> tuple[str, str]:
    passed = [row for row in rows if row.status == "PASSED"]
    shares = [row.percent_of_limit for row in passed if row.percent_of_limit is not None]
    figures = f", {min(shares):.0f} to {max(shares):.0f}% of the limit" if shares else ""
    wrong = next((f"; {row.status}: {row.detail}" for row in rows if row.status != "PASSED"), "")
    said = f"{len(passed)} of {len(rows)} evaluations passed{figures}{wrong}"
    return "passed" if len(passed) == len(rows) else "not passed", shorten(said)


def describe_basis(work: Work, step: Step, name: str) -> str:
    """Hash what a step's outcome follows from: the Definition, and what is measured of it."""
    definition = work.definitions[name]
    parts: list[object] = [hash_definition(definition)]
    if step is Step.BENCH:
        parts += [workload.uuid for workload in work.dataset.load_workloads(definition.op_type, name)]
        parts += [solution.hash for solution in _load_baselines(work, definition)]
    if step not in {Step.BASELINE, Step.SIZES}:
        parts.append(work.how.device)
    return content_hash(parts)[:16]


def shorten(text: str) -> str:
    """Keep a figure or a reason to one line that a manifest can hold for each kernel."""
    said = " ".join(text.split())
    return said if len(said) <= _LONGEST_DETAIL else f"{said[:_LONGEST_DETAIL]} ..."


STEPS: Mapping[Step, Callable[[Work, Sequence[str], Callable[[Outcomes], None]], None]] = {
    Step.TEST: _test,
    Step.BASELINE: _write_baselines,
    Step.COLLECT: _collect,
    Step.SIZES: _make_sizes,
    Step.CALIBRATE: _calibrate,
    Step.BENCH: _bench,
}
