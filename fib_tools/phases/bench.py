"""Benchmarking: Solutions of the dataset on its Workloads, judged, timed, and written down as Traces with evidence."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from fib_tools.dataset.layout import find_location
from fib_tools.dataset.store import Dataset
from fib_tools.errors import FibError, FormatError, RequestError
from fib_tools.evaluate.calibration.calibration import find_calibration, find_tolerances
from fib_tools.evaluate.engines.engine import Engine, Outcome
from fib_tools.evaluate.engines.engine_local import LocalEngine
from fib_tools.evaluate.engines.engine_ray import Cluster, RayEngine
from fib_tools.evaluate.engines.items import (
    BlobHasher,
    Bound,
    Bundle,
    Limits,
    Options,
    Plan,
    SolutionRef,
    list_refs,
    plan_items,
)
from fib_tools.evaluate.engines.journal import Journal, find_reusable
from fib_tools.evaluate.engines.traces import write_results
from fib_tools.gate.recognise import find_kernel
from fib_tools.host.cpu import read_cpu_name
from fib_tools.host.env import read_gpu_settings
from fib_tools.host.gpu_lock import Waiting
from fib_tools.host.gpus import discover_gpus
from fib_tools.host.locks import hold_dataset
from fib_tools.model.definition import Definition
from fib_tools.model.evidence import Evidence, Timer
from fib_tools.model.solution import Solution
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.model.workload import Workload
from fib_tools.phases.baselines import make_baselines, write_baselines
from fib_tools.phases.context import Context
from fib_tools.phases.request import COMMAND_LINE_ONLY, check_op_types

__all__ = ["BenchResult", "BenchRow", "benchmark_kernels", "find_hardware", "limit_time", "make_bundle"]

_SHOWN = 60
_NAMED = 10
_UNTOLD_SECONDS = 1.0
"""Of reading the dataset: what is over by then needs no progress."""
_RUNS = "bench"
_MESSAGES = 20
"""To a Solution on one Workload, each with the time limit."""


class BenchRow(Result):
    """What came of one Solution on one Workload."""

    definition: str
    workload: str
    solution: str
    author: str
    status: str
    rule: str = ""
    """The integrity rule that was broken."""
    milliseconds: float | None = None
    low: float | None = None
    """The 95% interval of the figure."""
    high: float | None = None
    reference_ms: float | None = None
    speedup: float | None = None
    """Over the reference."""
    percent_of_limit: float | None = None
    """Of what this device's memory or arithmetic was measured to allow."""
    detail: str = ""
    evidence: str = ""
    """Its key: `evidence/<2>/<key>.json` in the dataset."""


class BenchResult(Result):
    """What a run measured."""

    rows = "evaluations"
    row_fields = ("definition", "workload", "solution", "author", "status", "milliseconds", "speedup", "rule")

    run: str = ""
    """The run's folder: `--resume` goes on with it."""
    dataset: str
    device: str
    hardware: str
    """The device's model."""
    planned: int
    """Evaluations that were asked for."""
    reused: int = 0
    """Those that the dataset had evidence on."""
    evaluations: tuple[BenchRow, ...] = ()
    failures: tuple[str, ...] = ()
    """What could not be read, or the machinery could not evaluate."""
    unfit: tuple[str, ...] = ()
    """Solutions that were left out, since their target_hardware is another."""
    conflicts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """Of Traces, new or changed."""
    seconds: float = 0.0

    @property
    def has_errors(self) -> bool:
        """A Solution that fails is a result; what could not be evaluated is an error."""
        return bool(self.failures)

    def summary(self) -> Summary:
        """Show figures by evaluation, and what was rejected and why."""
        rows = tuple(_show(row) for row in self.evaluations[:_SHOWN])
        columns = ("definition", "workload", "solution", "status", "ms", "x reference", "% of limit")
        tables = (Table(title="evaluations", columns=columns, rows=rows),) if rows else ()
        more = (f"... and {len(self.evaluations) - _SHOWN} more: fib report",) if len(self.evaluations) > _SHOWN else ()
        wrong = tuple(f"{row.solution} on {row.workload[:8]}: {row.detail}" for row in _first_wrong(self.evaluations))
        passed = sum(row.status == "PASSED" for row in self.evaluations)
        label = " (a CPU: good for learning, not for claims)" if self.device == "cpu" else ""
        said = (
            f"{passed} of {len(self.evaluations)} evaluations passed on {self.hardware}{label} in {self.seconds:.1f} s"
        )
        kept = (f"{self.reused} of them were not run: the dataset has their evidence (--fresh runs them)",) * bool(
            self.reused
        )
        names = ", ".join((*self.unfit[:_NAMED], *("...",) * (len(self.unfit) > _NAMED)))
        unfit = (f"{len(self.unfit)} left out, for other hardware (spec.target_hardware): {names}",) * bool(names)
        if not self.run:
            said = f"{self.planned} evaluations would be made on {self.hardware}{label}; the dataset has evidence on {self.reused} more"
            return Summary(lines=(*self.failures, said, *unfit))
        return Summary(tables=tables, lines=(*more, *wrong, *self.failures, *self.conflicts, said, *kept, *unfit))


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
    dataset = Dataset.open(context.dataset.root)
    started = datetime.now().astimezone()
    entries = (
        write_baselines(context, definitions=definitions, op_types=op_types, dry_run=dry_run).entries
        if baselines
        else ()
    )
    refused = (f"no baseline of {entry.definition}: {entry.reason}" for entry in entries if entry.status == "refused")
    unwritten = {(entry.definition, entry.solution) for entry in entries if entry.status == "would write"}
    choice = _Choice(definitions, op_types, solutions, authors, workloads)
    bundles, unread = _bundle(context, dataset, choice, unwritten)
    failures = (*refused, *(f"not read: {error}" for error in unread))
    load = {bundle.definition.name: bundle for bundle in bundles}.__getitem__
    options = Options(
        device=device,
        timer=Timer(timer),
        seed=seed,
        limits=limit_time(time_limit, build_limit, together=max(len(bundle.solutions) for bundle in bundles)),
    )
    plan_for = _Planner(dataset, bundles, options)
    if dry_run:
        plan = plan_for(*find_hardware(device))
        known = 0 if fresh else sum(1 for _ in find_reusable(dataset, plan))
        return BenchResult(
            dataset=str(dataset.root),
            device=device,
            hardware=plan.hardware,
            planned=plan.evaluations - known,
            reused=known,
            failures=failures,
            unfit=tuple(plan_for.unfit),
        )
    if engine == "ray":
        made: Engine = RayEngine(load, cluster=Cluster(address=address or "auto", gpus=gpus))
    else:
        made = LocalEngine(load, gpus=0 if device == "cpu" else gpus or 1, report=_tell_waiting(context))
    context.workspace.create()
    with hold_dataset(dataset.root, purpose="looking whether Traces can be written"):
        pass  # who cannot write is told before anything is measured
    with made as running:
        plan = plan_for(running.hardware, running.capability)
        runs = context.workspace.root / _RUNS
        with Journal.prepare(runs, plan, resume=resume, now=started) as journal:
            if resume and not journal.goes_on:
                context.progress("no run of this very plan is there to go on with: a new one begins", 0, 0)
            reusable = {} if fresh else {evidence.key: evidence for evidence in find_reusable(dataset, plan)}
            try:
                _run(context, running, journal, reusable)
            finally:
                found = _name_all(bundles, [*reusable.values(), *journal.results()])
                files = _write(dataset, bundles, found)
            result = _to_result(dataset, journal, reusable, bundles, files, started)
            failures += result.failures
            return result.model_copy(update={"unfit": tuple(plan_for.unfit), "failures": failures})


def limit_time(time_limit: float, build_limit: float = 600, *, together: int) -> Limits:
    """Give a worker, which tells of a Workload's Solutions together, as long as all of them may take."""
    limits = Limits(evaluation_seconds=time_limit, build_seconds=build_limit)
    silence = together * (limits.build_seconds + _MESSAGES * time_limit)
    return limits.model_copy(update={"silence_seconds": max(limits.silence_seconds, silence)})


class _Choice:
    """What of a dataset is to be evaluated."""

    def __init__(
        self,
        definitions: tuple[str, ...] | None,
        op_types: tuple[str, ...] | None,
        solutions: tuple[str, ...] | None,
        authors: tuple[str, ...] | None,
        workloads: int | None,
    ) -> None:
        self.definitions, self.op_types, self.workloads = definitions, op_types, workloads
        self._solutions, self._authors = solutions, authors

    def takes(self, definition: Definition) -> bool:
        is_named = self.definitions is None or definition.name in self.definitions
        return is_named and (self.op_types is None or definition.op_type in self.op_types)

    def takes_solution(self, solution: Solution) -> bool:
        return self._takes(solution.name, solution.author)

    def may_take_file(self, path: str) -> bool:
        """Tell whether a Solution that cannot be read is one of those named, as far as its path says it."""
        at = find_location(path)
        return at is None or self._takes(at.file, at.author)

    def _takes(self, name: str, author: str) -> bool:
        is_named = self._solutions is None or name in self._solutions
        return is_named and (self._authors is None or author in self._authors)

    def find_missing(self, found: Collection[Solution]) -> list[str]:
        """Find the Solutions, then the authors, that were named and are not there."""
        names, authors = {each.name for each in found}, {each.author for each in found}
        return [*sorted(set(self._solutions or ()) - names), *sorted(set(self._authors or ()) - authors)]

    def check(self, names: Collection[str], found: Collection[Solution]) -> None:
        """Refuse names that choose nothing.

        Raises:
            RequestError: naming the first.
        """
        missing = [*sorted(set(self.definitions or ()) - set(names)), *self.find_missing(found)]
        if missing:
            what = f"no Definition, chosen Solution or author has the name {missing[0]!r}"
            near = difflib.get_close_matches(
                missing[0], {*names, *(each.name for each in found), *(each.author for each in found)}
            )
            raise RequestError(
                what, todo=f"did you mean {near[0]}?" if near else "see the folders definitions and solutions"
            )


def _bundle(
    context: Context, dataset: Dataset, choice: _Choice, unwritten: Collection[tuple[str, str]] = ()
) -> tuple[list[Bundle], list[FibError]]:
    """Load what is to be evaluated, and what is wrong with Solutions that may have been among it.

    Baselines that a dry run leaves `unwritten`, by Definition and name, count as if they were there.

    Raises:
        RequestError: nothing is.
    """
    check_op_types(choice.op_types)
    loaded, broken = dataset.load_definitions()
    bundles: list[Bundle] = []
    seen: list[Solution] = []
    unread: list[FibError] = []
    chosen = [definition for _, definition in sorted(loaded.items()) if choice.takes(definition)]
    begun = time.monotonic()
    for done, definition in enumerate(chosen):
        if time.monotonic() - begun > _UNTOLD_SECONDS:
            context.progress("reading Solutions and Workloads", done, len(chosen))
        found, wrong = dataset.read_solutions(definition.op_type, definition.name)
        unread += [error for path, error in wrong.items() if choice.may_take_file(path)]
        if unwritten:
            made = (solution for solution, _ in make_baselines(definition))
            found = (*found, *(each for each in made if (definition.name, each.name) in unwritten))
        seen += found
        kept = tuple(solution for solution in found if choice.takes_solution(solution))
        workloads = dataset.load_workloads(definition.op_type, definition.name)[: choice.workloads]
        if kept and workloads:
            bundles.append(make_bundle(context, definition, workloads, kept))
    if broken and not set(choice.definitions or ()) <= loaded.keys():
        raise broken[0]
    if unread and choice.find_missing(seen):
        raise unread[0]
    choice.check(loaded, seen)
    if not bundles and unread:
        raise unread[0]
    if not bundles:
        todo = "add Solutions (fib baselines write) and Workloads (workloads/<op_type>/<definition>.jsonl), or choose others"
        raise RequestError(
            "no Definition chosen has both a Solution and a Workload", where=str(dataset.root), todo=todo
        )
    return bundles, unread


def make_bundle(
    context: Context, definition: Definition, workloads: Sequence[Workload], solutions: Sequence[Solution]
) -> Bundle:
    """Put a Definition together with its bounds, calibrated if they are.

    Raises:
        FormatError: a Workload is not one of this Definition, or two have the same uuid.
    """
    _check_workloads(definition, workloads)
    calibration = find_calibration(context.workspace.root, definition)
    tolerances = find_tolerances(definition, find_kernel(definition), calibration)
    return Bundle(
        definition=definition,
        bounds={name: Bound.of(bound) for name, bound in tolerances.items()},
        workloads=tuple(workloads),
        solutions=tuple(solutions),
        trusted=tuple(made.hash for made, _ in make_baselines(definition)),
    )


def _check_workloads(definition: Definition, workloads: Sequence[Workload]) -> None:
    todo = "fib validate tells all that is wrong with them"
    seen: set[str] = set()
    for workload in workloads:
        where = f"Workload {workload.uuid} of {definition.name}"
        if workload.uuid in seen:
            raise FormatError("another Workload has the same uuid", where=where, todo=todo)
        seen.add(workload.uuid)
        for what, have, want in (
            ("axes", set(workload.axes), set(definition.var_axes)),
            ("inputs", set(workload.inputs), set(definition.inputs)),
        ):
            if have != want:
                said = f"its {what} are {', '.join(sorted(have)) or 'none'}; the Definition has {', '.join(sorted(want)) or 'none'}"
                raise FormatError(said, where=where, todo=todo)


class _Planner:
    """Makes the plan once the hardware is known."""

    def __init__(self, dataset: Dataset, bundles: list[Bundle], options: Options) -> None:
        self._dataset, self._options = dataset, options
        self._bundles = bundles
        self.unfit: list[str] = []
        """Solutions that are for other hardware, by name."""

    def __call__(self, hardware: str, capability: int) -> Plan:
        """Plan for a model of GPU.

        Raises:
            RequestError: every Solution is for others.
        """
        is_cpu = self._options.device == "cpu"
        kept = [bundle.for_cpu() if is_cpu else bundle.for_gpu(capability) for bundle in self._bundles]
        pairs = zip(self._bundles, kept, strict=True)
        self.unfit = [each.name for whole, left in pairs for each in whole.solutions if each not in left.solutions]
        items = plan_items(kept, hash_blob=BlobHasher(self._dataset.root))
        if not items:
            raise RequestError(
                f"no Solution chosen is for {hardware}{f' (sm{capability})' if capability else ''}",
                todo="see spec.target_hardware of each, or choose others",
            )
        return Plan(dataset=str(self._dataset.root), hardware=hardware, options=self._options, items=items)


def find_hardware(device: str) -> tuple[str, int]:
    """Find the model of the device and its compute capability, which is 0 for a CPU, and where there is no GPU."""
    if device == "cpu":
        return read_cpu_name(), 0
    found = discover_gpus(read_gpu_settings()).visible
    return (found[0].name, found[0].capability) if found else ("no GPU", 0)


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


def _write(dataset: Dataset, bundles: list[Bundle], results: Iterable[Evidence]) -> tuple[str, ...]:
    """Write Traces and evidence of what is finished, also when the run ends early, or a merge was killed before."""
    workloads: dict[tuple[str, str], Workload] = {
        (bundle.definition.name, workload.uuid): workload for bundle in bundles for workload in bundle.workloads
    }
    with hold_dataset(dataset.root, purpose="writing Traces"):
        return write_results(dataset, results, lambda name, uuid: workloads[name, uuid]).files


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


def _to_result(  # what a run is made of
    dataset: Dataset,
    journal: Journal,
    reusable: dict[str, Evidence],
    bundles: Sequence[Bundle],
    files: tuple[str, ...],
    started: datetime,
) -> BenchResult:
    results = {evidence.key: evidence for evidence in journal.results()}
    reused = [key for key in journal.plan.keys if key in reusable and key not in results]
    results |= {key: reusable[key] for key in reused}
    ordered = list(_name_all(bundles, (results[key] for key in journal.plan.keys if key in results)))
    return BenchResult(
        run=str(journal.folder),
        dataset=str(dataset.root),
        device=journal.plan.options.device,
        hardware=journal.plan.hardware,
        planned=journal.plan.evaluations,
        reused=len(reused),
        evaluations=tuple(_to_row(evidence) for evidence in ordered),
        failures=tuple(f"not evaluated: {failure.reason}" for failure in journal.failures),
        conflicts=tuple(
            f"two results for {conflict.key[:12]}: {conflict.first}, then {conflict.second}"
            for conflict in journal.conflicts
        ),
        files=files,
        seconds=(datetime.now().astimezone() - started).total_seconds(),
    )


def _to_row(evidence: Evidence) -> BenchRow:
    subject, figure = evidence.subject, evidence.series[0] if evidence.series else None
    passed = evidence.status.value == "PASSED" and figure is not None
    speedup = evidence.reference_ms / figure.milliseconds if passed and figure and evidence.reference_ms else None
    return BenchRow(
        definition=subject.definition,
        workload=subject.workload,
        solution=subject.solution,
        author=subject.author,
        status=evidence.status.value,
        rule=evidence.rule or "",
        milliseconds=figure.milliseconds if passed and figure else None,
        low=figure.low if passed and figure else None,
        high=figure.high if passed and figure else None,
        reference_ms=evidence.reference_ms,
        speedup=speedup,
        percent_of_limit=evidence.roofline.percent if passed and evidence.roofline else None,
        detail=evidence.detail,
        evidence=evidence.key,
    )


def _show(row: BenchRow) -> tuple[str, ...]:
    status = f"{row.status} ({row.rule})" if row.rule else row.status
    numbers = (row.milliseconds, row.speedup, row.percent_of_limit)
    figure, speedup, percent = ("" if number is None else f"{number:.4g}" for number in numbers)
    return (row.definition, row.workload[:8], row.solution, status, figure, speedup, percent)


def _first_wrong(rows: Iterable[BenchRow]) -> list[BenchRow]:
    """Take the first failure of each Solution."""
    found: dict[tuple[str, str], BenchRow] = {}
    for row in rows:
        if row.status != "PASSED":
            found.setdefault((row.definition, row.solution), row)
    return list(found.values())[:20]


def _tell_waiting(context: Context) -> Callable[[Waiting], None]:
    def tell(waiting: Waiting) -> None:
        context.progress(f"waiting for the GPU: {'; '.join(waiting.reasons)}", 0, 0)

    return tell
