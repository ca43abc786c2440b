"""Workloads of made-up sizes for Definitions that have none; they say that they are synthetic."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fib_tools.dataset.store import Dataset
from fib_tools.errors import FormatError
from fib_tools.host.locks import hold
from fib_tools.model.definition import Definition
from fib_tools.model.trace import Trace
from fib_tools.op_types.size_workloads import make_size_workloads
from fib_tools.phases.collect_result import CollectEntry, CollectResult
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import workspace_lock
from fib_tools.phases.request import choose_definitions

__all__ = ["make_up_workloads", "write_size_workloads"]


def make_up_workloads(
    context: Context,
    sizes: Sequence[str],
    definitions: Collection[str] | None,
    op_types: Collection[str] | None,
    *,
    dry_run: bool,
) -> CollectResult:
    """Write Workloads of made-up sizes for the Definitions of a choice that have none."""
    dataset = Dataset.open(context.dataset.root)
    loaded, _ = dataset.load_definitions()
    wanted = choose_definitions(loaded, definitions, op_types, where=str(dataset.root))
    return CollectResult(
        dataset=str(dataset.root),
        folder="",
        origin="synthetic",
        calls=0,
        plans=0,
        reading_seconds=0.0,
        entries=tuple(write_size_workloads(context, dataset, wanted, sizes, dry_run=dry_run)),
        others={},
    )


def write_size_workloads(
    context: Context,
    dataset: Dataset,
    definitions: Sequence[Definition],
    sizes: Sequence[str],
    *,
    dry_run: bool = False,
) -> list[CollectEntry]:
    """Write a Workload of each size for every Definition that has none; the others are left alone.

    They are not executed first: reference tests run at these very sizes, and so does the evaluator.
    """
    context.workspace.create()
    with hold(workspace_lock(context), purpose="writing Workloads"):
        return [_write_one(dataset, definition, sizes, dry_run=dry_run) for definition in definitions]


def _write_one(dataset: Dataset, definition: Definition, sizes: Sequence[str], *, dry_run: bool) -> CollectEntry:
    standing = dataset.load_workloads(definition.op_type, definition.name)
    if standing:
        return _entry(definition, status="kept", workloads=len(standing))
    try:
        made = make_size_workloads(definition, sizes)
    except FormatError as error:
        return _entry(definition, status="refused", rejected=(str(error),))
    if not made:
        return _entry(definition, status="refused", rejected=("no length of these sizes meets its constraints",))
    own: dict[str, Any] = {"workloads": len(made), "distinct": len(made), "notes": (f"sizes: {', '.join(made)}",)}
    if dry_run:
        return _entry(definition, status="would write", **own)
    traces = [Trace(definition=definition.name, workload=workload) for workload in made.values()]
    dataset.write_workloads(definition.op_type, traces)
    return _entry(definition, status="written", **own)


def _entry(definition: Definition, **own: Any) -> CollectEntry:
    counts = {"calls": 0, "distinct": 0, "workloads": 0}
    return CollectEntry(definition=definition.name, op_type=definition.op_type, **{**counts, **own})
