"""Phase 3: Workloads from the calls of a running engine, each executed before it is written.

An engine writes its calls down with FLASHINFER_LOGLEVEL=10 and FLASHINFER_DUMP_DIR; see `capture/collection`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fib_tools.capture.collection.candidates import Tally
from fib_tools.capture.collection.collector import Collector, remove_call, take_calls
from fib_tools.capture.collection.documents import Draft, make_draft, write_drafts
from fib_tools.capture.collection.following import follow_calls
from fib_tools.capture.collection.matching import Target
from fib_tools.dataset.store import Dataset, Written
from fib_tools.errors import RequestError
from fib_tools.gate.execute import execute_workloads
from fib_tools.gate.recognise import recognise
from fib_tools.host.files import storage_errors, temporary_sibling
from fib_tools.host.locks import hold
from fib_tools.model.definition import Definition
from fib_tools.model.workload import Origin
from fib_tools.phases.collect_result import CollectEntry, CollectResult, Refusal, measure_spread
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import workspace_lock
from fib_tools.phases.request import check_op_types, choose_definitions

__all__ = ["collect_workloads", "list_targets", "settle_workloads"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    """What was read of a folder."""

    collector: Collector
    seconds: float
    read: Sequence[Path] = ()
    most_bytes: int | None = None


def collect_workloads(  # the options of the command
    context: Context,
    *,
    from_dir: Annotated[
        Path, Field(description="Folder of an engine's calls: its FLASHINFER_DUMP_DIR, at FLASHINFER_LOGLEVEL=10.")
    ],
    origin: Annotated[
        Origin,
        Field(
            description="Where the calls come from, which no dump says: real (real weights and prompts), dummy "
            "(made-up weights) or synthetic (made-up input)."
        ),
    ],
    definitions: Annotated[
        tuple[str, ...] | None, Field(description="Only Workloads of these Definitions, by name.")
    ] = None,
    op_types: Annotated[tuple[str, ...] | None, Field(description="Only Definitions of these op_types.")] = None,
    num_samples: Annotated[
        int, Field(ge=1, le=10_000, description="The most Workloads of one Definition, chosen to differ.")
    ] = 100,
    consume: Annotated[bool, Field(description="Remove the calls when their Workloads are written.")] = False,
    follow: Annotated[
        float | None,
        Field(
            gt=0,
            le=86_400,
            description="Read while an engine writes, removing calls as they are read, until none has come for so "
            "many seconds.",
        ),
    ] = None,
    dry_run: Annotated[bool, Field(description="Say what would be written; nothing is written or removed.")] = False,
) -> CollectResult:
    """Collect Workloads from the calls of an engine that ran with FlashInfer's log level 10, and execute each.

    Equal calls become one Workload with a count; of too many, those that differ most are kept and stand for the rest.
    """
    if dry_run and (consume or follow is not None):
        raise RequestError("a dry run removes nothing", todo="leave out --consume and --follow, or --dry-run")
    folder = context.check_readable(from_dir)
    dataset = Dataset.open(context.dataset.root)
    targets = _find_targets(context, dataset, definitions, op_types)
    reading = _read(context, folder, Collector(targets=targets, limit=num_samples), follow=follow)
    entries = settle_workloads(context, dataset, reading.collector.tallies, origin=origin, dry_run=dry_run)
    for path in reading.read if consume else ():
        remove_call(path)
    return _report(dataset, folder, reading, entries=entries, origin=origin)


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


def _read(context: Context, folder: Path, collector: Collector, *, follow: float | None) -> _Reading:
    def report(done: int, total: int) -> None:
        context.progress("reading calls", done, total)

    import torch  # noqa: F401  # it takes a second, which is not what is measured here

    start = time.monotonic()
    if follow is not None:
        most = follow_calls(folder, collector, idle_seconds=follow, report=report)
        return _Reading(collector=collector, seconds=time.monotonic() - start, most_bytes=most)
    read = take_calls(folder, collector, report=report)
    return _Reading(collector=collector, seconds=time.monotonic() - start, read=read)


def settle_workloads(
    context: Context, dataset: Dataset, tallies: Mapping[str, Tally], *, origin: Origin, dry_run: bool
) -> list[CollectEntry]:
    """Choose, execute and write the Workloads of every Definition."""
    drafts = {
        name: [make_draft(tally.target.definition, item, origin) for item in tally.choose()]
        for name, tally in sorted(tallies.items())
    }
    reasons = _execute(context, tallies, drafts)
    with hold(workspace_lock(context), purpose="writing Workloads"):
        return [
            _write(dataset, tallies[name], items, reasons=reasons, dry_run=dry_run) for name, items in drafts.items()
        ]


def _execute(context: Context, tallies: Mapping[str, Tally], drafts: dict[str, list[Draft]]) -> dict[str, str]:
    """Run the reference with every Workload; return why it did not accept some, by uuid."""
    listed = [(name, draft) for name, items in drafts.items() for draft in items]
    with _stage(context, [draft for _, draft in listed]) as root:
        given = ((tallies[name].target.definition, draft.workload) for name, draft in listed)
        reasons: dict[str, str] = {}
        for done, (uuid, execution) in enumerate(execute_workloads(given, root=root), start=1):
            context.progress("executing Workloads", done, len(listed))
            if not execution.executed:
                reasons[uuid] = execution.reason or "the reference did not run"
    return reasons


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


def _write(
    dataset: Dataset, tally: Tally, drafts: Sequence[Draft], *, reasons: dict[str, str], dry_run: bool
) -> CollectEntry:
    definition = tally.target.definition
    accepted = [draft for draft in drafts if draft.workload.uuid not in reasons]
    rejected = [f"{uuid}: {reasons[uuid]}" for uuid in (draft.workload.uuid for draft in drafts) if uuid in reasons]
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
        notes=tuple(tally.notes),
        rejected=tuple(rejected),
    )
    if dry_run or not accepted:
        return entry
    written, blobs = write_drafts(dataset, definition, accepted)
    status = "unchanged" if written is Written.UNCHANGED else "written"
    return entry.model_copy(update={"status": status, "blobs": len(blobs)})


def _report(
    dataset: Dataset, folder: Path, reading: _Reading, *, entries: Sequence[CollectEntry], origin: Origin
) -> CollectResult:
    collector = reading.collector
    refused = [
        Refusal(function=function, reason=reason, calls=calls)
        for (function, reason), calls in collector.refused.most_common()
    ]
    wanted = (target.definition.name for target in collector.targets)
    return CollectResult(
        dataset=str(dataset.root),
        folder=str(folder),
        origin=origin,
        calls=collector.calls,
        plans=collector.plans,
        reading_seconds=round(reading.seconds, 3),
        most_bytes=reading.most_bytes,
        entries=tuple(entries),
        refused=tuple(refused),
        others=dict(collector.others.most_common()),
        not_seen=tuple(sorted(name for name in wanted if name not in collector.tallies)),
    )
