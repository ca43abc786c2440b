"""Benchmarking: Solutions of the dataset on its Workloads, judged, timed, and written down as Traces with evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.engines.engine import Engine, Outcome
from fib_tools.evaluate.engines.engine_local import LocalEngine
from fib_tools.evaluate.engines.engine_ray import Cluster, RayEngine
from fib_tools.evaluate.engines.items import Bundle, Options, SolutionRef, list_refs
from fib_tools.evaluate.engines.journal import Journal, find_reusable
from fib_tools.evaluate.engines.traces import write_results
from fib_tools.host.gpu_lock import Waiting
from fib_tools.host.hardware import find_hardware
from fib_tools.host.locks import hold_dataset
from fib_tools.model.evidence import Evidence, Timer
from fib_tools.model.workload import Workload
from fib_tools.phases.baselines import write_baselines
from fib_tools.phases.bench_bundles import BenchChoice, load_bundles
from fib_tools.phases.bench_plan import BenchWork, limit_time
from fib_tools.phases.bench_result import BenchResult, BenchRow
from fib_tools.phases.context import Context
from fib_tools.phases.request import COMMAND_LINE_ONLY

__all__ = ["benchmark_kernels"]

_RUNS = "bench"


def benchmark_kernels(
    context: Context,
    definitions: Annotated[
        tuple[str, ...] | None,
        Field(description="Only these Definitions, by name; all that have Solutions if left out."),
    ] = None,
    *,
    op_types: Annotated[tuple[str, ...] | None, Field(description="Only Definitions of these op_types.")] = None,
    solutions: Annotated[tuple[str, ...] | None, Field(description="Only these Solutions, by name.")] = None,
    authors: Annotated[
        tuple[str, ...] | None, Field(description="Only Solutions of these authors; `baseline` is FlashInfer's.")
    ] = None,
    workloads: Annotated[
        int | None, Field(ge=1, description="At most so many Workloads of each Definition, the first ones.")
    ] = None,
    device: Annotated[
        Literal["cuda", "cpu"], Field(description="Where to run; on a CPU the whole loop can be learnt, slowly.")
    ] = "cuda",
    gpus: Annotated[int | None, Field(ge=1, le=64, description="How many GPUs; one if left out.")] = None,
    engine: Annotated[
        Literal["local", "ray"], Field(description="local: this machine's GPUs; ray: those of a Ray cluster.")
    ] = "local",
    timer: Annotated[
        Literal["cupti", "events"],
        Field(description="cupti: the GPU's own activity records; events: CUDA events. There is no fall-back."),
    ] = "cupti",
    seed: Annotated[
        int | None, Field(ge=0, lt=2**53, description="The master seed, to repeat a run; secret and new if left out.")
    ] = None,
    time_limit: Annotated[
        float,
        Field(
            ge=1, le=3600, description="Seconds for a Solution's calls on one Workload; four times that for the first."
        ),
    ] = 120,
    build_limit: Annotated[
        float,
        Field(
            ge=1, le=7200, description="Seconds for building a Solution; what hangs at import holds others up so long."
        ),
    ] = 600,
    baselines: Annotated[
        bool, Field(description="First write the baseline Solutions that these Definitions do not have yet.")
    ] = False,
    resume: Annotated[bool, Field(description="Go on with the last run of the same plan, killed or ended.")] = False,
    fresh: Annotated[bool, Field(description="Measure also what the dataset already has evidence on.")] = False,
    dry_run: Annotated[bool, Field(description="Say what would be evaluated, and do nothing.")] = False,
    address: Annotated[
        str | None, Field(description="Of the Ray cluster; the one of this machine if left out."), COMMAND_LINE_ONLY
    ] = None,
) -> BenchResult:
    """Benchmark Solutions on Workloads so that the numbers are true, and write Traces with their evidence.

    Each Solution runs in a confined process of its own, on fresh inputs at each call; every output of every call is
    compared, and times are checked against an outside clock and the device's measured limits.

    Exit status 0: all was evaluated (a Solution that fails is a result); 1: something could not be read or evaluated.
    """
    started = datetime.now().astimezone()
    dataset = Dataset.open(context.dataset.root)
    entries = (
        write_baselines(context, definitions=definitions, op_types=op_types, dry_run=dry_run).entries
        if baselines
        else ()
    )
    refused = (f"no baseline of {entry.definition}: {entry.reason}" for entry in entries if entry.status == "refused")
    unwritten = {(entry.definition, entry.solution) for entry in entries if entry.status == "would write"}
    choice = BenchChoice(
        definitions=definitions, op_types=op_types, solutions=solutions, authors=authors, workloads=workloads
    )
    bundles, unread = load_bundles(context, dataset, choice, unwritten)
    together = max(len(bundle.solutions) for bundle in bundles)
    limits = limit_time(time_limit, build_limit, together=together)
    options = Options(device=device, timer=Timer(timer), seed=seed, limits=limits)
    work = BenchWork(dataset=dataset, bundles=bundles, options=options)
    if dry_run:
        result = _forecast(work, fresh=fresh)
    else:
        made = _make_engine(context, work, engine, gpus=gpus, address=address)
        result = _measure(context, work, made, resume=resume, fresh=fresh, started=started)
    failures = (*refused, *(f"not read: {error}" for error in unread), *result.failures)
    return result.model_copy(update={"failures": failures})


def _forecast(work: BenchWork, *, fresh: bool) -> BenchResult:
    """Count what would be evaluated on this machine."""
    hardware, capability = find_hardware(work.options.device)
    plan = work.plan(hardware, capability)
    known = 0 if fresh else sum(1 for _ in find_reusable(work.dataset, plan))
    return BenchResult(
        dataset=plan.dataset,
        device=work.options.device,
        hardware=hardware,
        planned=plan.evaluations - known,
        reused=known,
        unfit=work.find_unfit(capability),
    )


def _make_engine(
    context: Context, work: BenchWork, engine: Literal["local", "ray"], *, gpus: int | None, address: str | None
) -> Engine:
    load = {bundle.definition.name: bundle for bundle in work.bundles}.__getitem__
    if engine == "ray":
        return RayEngine(load, cluster=Cluster(address=address or "auto", gpus=gpus))
    return LocalEngine(load, gpus=0 if work.options.device == "cpu" else gpus or 1, report=_tell_waiting(context))


def _measure(
    context: Context, work: BenchWork, engine: Engine, *, resume: bool, fresh: bool, started: datetime
) -> BenchResult:
    """Evaluate, and write Traces of what is finished however the run ends."""
    context.workspace.create()
    with hold_dataset(work.dataset.root, purpose="looking whether Traces can be written"):
        pass  # who cannot write is told before anything is measured
    with engine as running:
        plan = work.plan(running.hardware, running.capability)
        with Journal.prepare(context.workspace.root / _RUNS, plan, resume=resume, now=started) as journal:
            if resume and not journal.goes_on:
                context.progress("no run of this very plan is there to go on with: a new one begins", 0, 0)
            reusable = {} if fresh else {evidence.key: evidence for evidence in find_reusable(work.dataset, plan)}
            try:
                _run(context, running, journal, reusable)
            finally:
                found = _name_all(work.bundles, [*reusable.values(), *journal.results()])
                files = _write(work, found)
            result = _to_result(work, journal, reusable, files, started)
            return result.model_copy(update={"unfit": work.find_unfit(running.capability)})


def _run(context: Context, engine: Engine, journal: Journal, reusable: dict[str, Evidence]) -> None:
    items = journal.remaining(reusable)
    total = sum(len(item.solutions) for item in items)
    context.progress(f"evaluating on {engine.hardware}", 0, total)
    for done, outcome in enumerate(engine.run(journal.plan, items), start=1):
        journal.record(outcome)
        context.progress(_describe(outcome), done, total)


def _describe(outcome: Outcome) -> str:
    said = outcome.evidence.status.value if outcome.evidence else "failed"
    return f"{outcome.solution.name} on {outcome.item.definition}: {said}"


def _write(work: BenchWork, results: Iterable[Evidence]) -> tuple[str, ...]:
    """Write Traces and evidence of what is finished, also when the run ends early, or a merge was killed before."""
    workloads: dict[tuple[str, str], Workload] = {
        (bundle.definition.name, workload.uuid): workload for bundle in work.bundles for workload in bundle.workloads
    }
    with hold_dataset(work.dataset.root, purpose="writing Traces"):
        return write_results(work.dataset, results, lambda name, uuid: workloads[name, uuid]).files


def _name_all(bundles: Iterable[Bundle], results: Iterable[Evidence]) -> Iterator[Evidence]:
    """Give evidence to every Solution that it is about: they may be renamed, or say the same under two names."""
    names: dict[tuple[str, str], list[SolutionRef]] = {}
    for bundle in bundles:
        for ref in list_refs(bundle.solutions):
            names.setdefault((bundle.definition.name, ref.hash), []).append(ref)
    for evidence in results:
        subject = evidence.subject
        for ref in names.get((subject.definition, subject.solution_hash), ()):
            own = subject.model_copy(update={"solution": ref.name, "author": ref.author})
            yield evidence.model_copy(update={"subject": own})


def _to_result(
    work: BenchWork, journal: Journal, reusable: dict[str, Evidence], files: tuple[str, ...], started: datetime
) -> BenchResult:
    results = {evidence.key: evidence for evidence in journal.results()}
    reused = [key for key in journal.plan.keys if key in reusable and key not in results]
    results |= {key: reusable[key] for key in reused}
    ordered = list(_name_all(work.bundles, (results[key] for key in journal.plan.keys if key in results)))
    return BenchResult(
        run=str(journal.folder),
        dataset=journal.plan.dataset,
        device=journal.plan.options.device,
        hardware=journal.plan.hardware,
        planned=journal.plan.evaluations,
        reused=len(reused),
        evaluations=tuple(BenchRow.of(evidence) for evidence in ordered),
        failures=tuple(f"not evaluated: {failure.reason}" for failure in journal.failures),
        conflicts=tuple(
            f"two results for {conflict.key[:12]}: {conflict.first}, then {conflict.second}"
            for conflict in journal.conflicts
        ),
        files=files,
        seconds=(datetime.now().astimezone() - started).total_seconds(),
    )


def _tell_waiting(context: Context) -> Callable[[Waiting], None]:
    def tell(waiting: Waiting) -> None:
        context.progress(f"waiting for the GPU: {'; '.join(waiting.reasons)}", 0, 0)

    return tell
