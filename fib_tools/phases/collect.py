"""Phase 3: Workloads from the calls of a running engine, each executed before it is written.

The engine is started here, or another one wrote its calls down with FLASHINFER_LOGLEVEL=10 and FLASHINFER_DUMP_DIR; see
`capture/collection`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fib_tools.capture.collection.candidates import Tally
from fib_tools.capture.collection.collector import Collector, remove_call, take_calls
from fib_tools.capture.collection.documents import Draft, make_draft, write_drafts
from fib_tools.capture.collection.following import follow_calls
from fib_tools.capture.collection.matching import Target
from fib_tools.capture.collection.receipt import settle_receipt
from fib_tools.capture.runs import NotCovered
from fib_tools.dataset.store import Dataset, Written
from fib_tools.errors import RequestError
from fib_tools.gate.execute import execute_workloads
from fib_tools.gate.recognise import recognise
from fib_tools.host.files import storage_errors, temporary_sibling
from fib_tools.host.locks import hold
from fib_tools.model.definition import Definition
from fib_tools.model.workload import Origin
from fib_tools.phases.collect_result import CollectEntry, CollectResult, Refusal, measure_load, measure_spread
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import workspace_lock
from fib_tools.phases.request import DEFAULTS, ModelOptions, check_op_types, choose_definitions
from fib_tools.phases.serving_options import PLAIN, ServingOptions, find_origin
from fib_tools.phases.size_workloads import make_up_workloads
from fib_tools.phases.trace_result import RunLine

__all__ = ["collect_workloads", "list_targets", "settle_workloads"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    """What was read of a folder."""

    collector: Collector
    folder: Path
    origin: Origin
    seconds: float
    read: Sequence[Path] = ()
    most_bytes: int | None = None
    runs: tuple[RunLine, ...] = ()
    requests: str = ""
    not_covered: tuple[NotCovered, ...] = ()


def collect_workloads(  # the options of the command
    context: Context,
    model: Annotated[str | None, Field(description="The model to serve; not needed with --from-dir.")] = None,
    options: ModelOptions = DEFAULTS,
    serving: ServingOptions = PLAIN,
    *,
    from_dir: Annotated[
        Path | None,
        Field(
            description="Folder of the calls of an engine that runs, or ran, elsewhere: its FLASHINFER_DUMP_DIR, at "
            "FLASHINFER_LOGLEVEL=10."
        ),
    ] = None,
    origin: Annotated[
        Origin | None,
        Field(
            description="Where the calls of --from-dir come from, which no dump says: real (real weights and prompts), "
            "dummy (made-up weights) or synthetic (made-up input)."
        ),
    ] = None,
    sizes: Annotated[
        tuple[Literal["small", "medium", "large"], ...] | None,
        Field(
            description="No engine: synthetic Workloads of the sizes that reference tests use, for Definitions without any.",
            min_length=1,
        ),
    ] = None,
    definitions: Annotated[
        tuple[str, ...] | None, Field(description="Only Workloads of these Definitions, by name.")
    ] = None,
    num_samples: Annotated[
        int, Field(ge=1, le=10_000, description="The most Workloads of one Definition, chosen to differ.")
    ] = 100,
    expert_skew: Annotated[
        float | None,
        Field(
            ge=0,
            le=4,
            description="Send tokens to experts by a Zipf law of this exponent (0: to all alike) in place of what the "
            "engine chose, which with made-up weights means nothing; such Workloads are synthetic.",
        ),
    ] = None,
    consume: Annotated[
        bool,
        Field(
            description="Remove the calls that became Workloads, and their plans, when those are written; what was "
            "refused, cannot be read or is of no wanted Definition stays."
        ),
    ] = False,
    follow: Annotated[
        float | None,
        Field(
            gt=0,
            le=86_400,
            description="Read while an engine writes, removing calls in steps, whatever became of them, until "
            "none has come for so many seconds.",
        ),
    ] = None,
    dry_run: Annotated[bool, Field(description="Say what would be written; nothing is written or removed.")] = False,
) -> CollectResult:
    """Collect Workloads from what an engine really calls: SGLang is started and serves the model, or its dumps are read.

    Equal calls become one Workload with a count; of too many, those that differ most are kept and stand for the rest.
    Each is executed before it is written. The engine's calls are removed as they are read, so that the disk holds few.
    Counts of calls that are removed add to those of earlier runs; of calls that stay where they are they replace them.
    """
    if dry_run and (consume or follow is not None):
        raise RequestError("a dry run removes nothing", todo="leave out --consume and --follow, or --dry-run")
    if sizes is not None:
        if model is not None or from_dir is not None:
            raise RequestError("--sizes makes Workloads up, and reads no engine", todo="leave out MODEL and --from-dir")
        check_op_types(options.op_types)
        return make_up_workloads(context, sizes, definitions, options.op_types, dry_run=dry_run)
    source = _choose_source(model, from_dir, origin)
    if model is not None and (consume or follow is not None):
        raise RequestError(
            "--consume and --follow belong to --from-dir",
            todo="leave them out: the calls of an engine that is started here are always removed as they come",
        )
    dataset = Dataset.open(context.dataset.root)
    targets = _find_targets(context, dataset, definitions, options.op_types)
    remembers = consume or follow is not None
    collector = Collector(targets=targets, limit=num_samples, expert_skew=expert_skew, remembers=remembers)
    if isinstance(source, str):
        reading = _serve(context, source, options, serving, collector, dry_run=dry_run)
    else:
        _settle_killed_run(context, dry_run=dry_run)
        count = partial(
            settle_workloads, context, dataset, collector.tallies, origin=source[1], dry_run=False, adds=True
        )
        reading = _read(context, collector, *source, follow=follow, count=count)
    adds = remembers or isinstance(source, str)
    entries = settle_workloads(context, dataset, collector.tallies, origin=reading.origin, dry_run=dry_run, adds=adds)
    _remove_plans(collector)
    for path in reading.read if follow is not None else ():
        if path.exists():
            remove_call(path)
    staying = sum(path.exists() for path in reading.read) if consume else 0
    return _report(dataset, reading, entries=entries, staying=staying)


def _choose_source(model: str | None, from_dir: Path | None, origin: Origin | None) -> str | tuple[Path, Origin]:
    """Take either a model, or a folder with what no dump says.

    Raises:
        RequestError: both, none, or only a part of it.
    """
    todo = "pass MODEL, or --from-dir DIR with --origin real, dummy or synthetic"
    if model is not None and from_dir is None and origin is None:
        return model
    if model is not None:
        raise RequestError("where the calls come from is known of a model that is served here", todo=todo)
    if from_dir is None:
        raise RequestError("nothing to collect from", todo=todo)
    if not from_dir.is_dir():
        raise RequestError("no such folder", where=str(from_dir), todo="name the folder of FLASHINFER_DUMP_DIR")
    if origin is None:
        raise RequestError("no dump says where its calls come from", todo="pass --origin real, dummy or synthetic")
    return from_dir, origin


def _find_targets(
    context: Context, dataset: Dataset, definitions: Sequence[str] | None, op_types: Sequence[str] | None
) -> list[Target]:
    check_op_types(op_types)
    loaded, _ = dataset.load_definitions()
    wanted = choose_definitions(loaded, definitions, op_types, where=str(dataset.root))
    context.progress("recognising the Definitions", 0, 0)
    targets = list_targets(wanted)
    if not targets:
        raise RequestError(
            "no Definition of a known kernel type to collect for",
            where=str(dataset.root),
            todo="run: fib define MODEL, or select others",
        )
    for target in targets:  # what cannot be added to is found before calls are removed
        dataset.load_workloads(target.definition.op_type, target.definition.name)
    return targets


def list_targets(definitions: Iterable[Definition]) -> list[Target]:
    """List what Definitions compute; those that are of no kernel type of ours are left out."""
    recognised = ((definition, recognise(definition)) for definition in definitions)
    return [
        Target(definition=definition, kernel=found.kernel, parameters=found.parameters)
        for definition, found in recognised
        if found is not None
    ]


def _serve(
    context: Context,
    model: str,
    options: ModelOptions,
    serving: ServingOptions,
    collector: Collector,
    *,
    dry_run: bool,
) -> _Reading:
    """Start the engine, or in a dry run say what would be started."""
    # what plans and runs an engine is heavy, and `fib --help` can do without it
    from fib_tools.phases.collect_serving import preview_runs, serve_model

    if dry_run:
        served = preview_runs(context, model, options, serving)
    else:
        served = serve_model(context, model, options, serving, collector)
    return _Reading(
        collector=collector,
        folder=served.folder,
        origin=find_origin(serving),
        seconds=served.seconds,
        most_bytes=served.most_bytes,
        runs=served.runs,
        requests=served.requests,
        not_covered=served.not_covered,
    )


def _read(
    context: Context,
    collector: Collector,
    folder: Path,
    origin: Origin,
    *,
    follow: float | None,
    count: Callable[[], object],
) -> _Reading:
    """Read what another engine wrote, or writes."""
    folder = context.check_readable(folder)

    def report(done: int, total: int) -> None:
        context.progress("reading calls", done, total)

    import torch  # noqa: F401  # it takes a second, which is not what is measured here

    start = time.monotonic()
    if follow is not None:
        follower = follow_calls(folder, collector, idle_seconds=follow, count=count, report=report)
        seconds, most = time.monotonic() - start, follower.most_bytes
        read = [*follower.held]
        return _Reading(collector=collector, folder=folder, origin=origin, seconds=seconds, read=read, most_bytes=most)
    read = take_calls(folder, collector, report=report)
    seconds = time.monotonic() - start
    return _Reading(collector=collector, folder=folder, origin=origin, seconds=seconds, read=read)


def _receipt(context: Context) -> Path:
    """Name the file that says which calls are being counted; who holds the workspace's lock writes it."""
    return context.workspace.root / ".counted.json"


def _settle_killed_run(context: Context, *, dry_run: bool) -> None:
    """Remove what a killed run has counted before it is read again."""
    if not dry_run and _receipt(context).exists():
        with hold(workspace_lock(context), purpose="removing calls that were counted"):
            settle_receipt(_receipt(context))


def _remove_plans(collector: Collector) -> None:
    """Remove each plan() that no call is left to run with; one that none ever ran with is kept."""
    for plan, runs in collector.runs.items():
        if plan.exists() and not any(path.exists() for path in runs):
            remove_call(plan)


def settle_workloads(
    context: Context,
    dataset: Dataset,
    tallies: Mapping[str, Tally],
    *,
    origin: Origin,
    dry_run: bool,
    adds: bool,
) -> list[CollectEntry]:
    """Choose, execute and write the Workloads of every Definition; `adds` says that nobody can read these calls again.

    The calls that the collector was to remember are removed when they are counted.
    """
    drafts = {
        name: [
            make_draft(tally.target.definition, item, "synthetic" if tally.is_made_up else origin)
            for item in tally.choose()
        ]
        for name, tally in sorted(tallies.items())
    }
    reasons = _execute(context, tallies, drafts)
    receipt = None if dry_run else _receipt(context)
    with hold(workspace_lock(context), purpose="writing Workloads"):
        if receipt is not None:
            settle_receipt(receipt)
        return [
            _write(dataset, tallies[name], _accept(items, reasons), receipt=receipt, adds=adds)
            for name, items in drafts.items()
        ]


def _execute(context: Context, tallies: Mapping[str, Tally], drafts: dict[str, list[Draft]]) -> dict[str, str]:
    """Run the reference with every Workload; return why it did not accept some, by uuid."""
    listed = [
        (name, draft)
        for name, items in drafts.items()
        for draft in items
        if draft.workload.uuid not in tallies[name].share.reasons
    ]
    with _stage(context, [draft for _, draft in listed]) as root:
        given = ((tallies[name].target.definition, draft.workload) for name, draft in listed)
        reasons: dict[str, str] = {}
        for done, (uuid, execution) in enumerate(execute_workloads(given, root=root), start=1):
            context.progress("executing Workloads", done, len(listed))
            reasons[uuid] = "" if execution.executed else execution.reason or "the reference did not run"
    for name, draft in listed:
        tallies[name].share.reasons[draft.workload.uuid] = reasons[draft.workload.uuid]
    known = (reason for tally in tallies.values() for reason in tally.share.reasons.items())
    return {uuid: reason for uuid, reason in known if reason}


@contextmanager
def _stage(context: Context, drafts: Sequence[Draft]) -> Iterator[Path]:
    """Lay out the blobs where the sandbox may read them and nothing else does."""
    context.workspace.create()
    root = temporary_sibling(context.workspace.root.resolve() / "collected")
    try:
        with storage_errors(root):
            root.mkdir()
        staging = Dataset(root)
        for draft in drafts:
            if draft.at is not None:
                staging.write_blob(draft.at, draft.blob)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _accept(drafts: Sequence[Draft], reasons: Mapping[str, str]) -> tuple[list[Draft], tuple[str, ...]]:
    """Part those that the reference ran with from those that it did not, which are told with the reason."""
    accepted = [draft for draft in drafts if draft.workload.uuid not in reasons]
    rejected = (uuid for uuid in (draft.workload.uuid for draft in drafts) if uuid in reasons)
    return accepted, tuple(f"{uuid}: {reasons[uuid]}" for uuid in rejected)


def _write(
    dataset: Dataset, tally: Tally, judged: tuple[list[Draft], tuple[str, ...]], *, receipt: Path | None, adds: bool
) -> CollectEntry:
    definition = tally.target.definition
    accepted, rejected = judged
    entry = CollectEntry(
        definition=definition.name,
        op_type=definition.op_type,
        status="would write" if accepted else "refused",
        calls=tally.calls,
        distinct=tally.distinct,
        workloads=len(accepted),
        spreads=tuple(
            measure_spread(axis, lengths, [(item.workload.axes, item.workload.count) for item in accepted])
            for axis, lengths in tally.lengths.items()
        ),
        load=measure_load(tally.experts, _count_experts(definition)) if tally.experts else None,
        notes=tuple(tally.notes),
        rejected=rejected,
    )
    if receipt is None or not accepted:
        return entry
    is_first = not tally.share.counts
    written, _ = write_drafts(dataset, definition, accepted, adds=adds, receipt=receipt, share=tally.share)
    status = "unchanged" if written is Written.UNCHANGED and is_first else "written"
    return entry.model_copy(update={"status": status, "blobs": len(tally.share.blobs)})


def _count_experts(definition: Definition) -> int:
    return definition.const_axes.get("num_experts") or definition.const_axes["num_local_experts"]


def _report(dataset: Dataset, reading: _Reading, *, entries: Sequence[CollectEntry], staying: int) -> CollectResult:
    collector = reading.collector
    refused = [
        Refusal(function=function, reason=reason, calls=calls)
        for (function, reason), calls in collector.refused.most_common()
    ]
    wanted = (target.definition.name for target in collector.targets)
    return CollectResult(
        dataset=str(dataset.root),
        folder=str(reading.folder),
        origin=reading.origin,
        calls=collector.calls,
        plans=collector.plans,
        reading_seconds=round(reading.seconds, 3),
        most_bytes=reading.most_bytes,
        staying=staying,
        entries=tuple(entries),
        refused=tuple(refused),
        others=dict(collector.others.most_common()),
        not_seen=tuple(sorted(name for name in wanted if name not in collector.tallies)),
        runs=reading.runs,
        requests=reading.requests,
        not_covered=reading.not_covered,
    )
