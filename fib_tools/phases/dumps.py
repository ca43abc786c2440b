"""Raw dumps of others through the same gate: normalised, recognised, executed, staged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from fib_tools.errors import RequestError
from fib_tools.gate.execute import open_sandbox
from fib_tools.gate.gate import Candidate, admit, to_candidate
from fib_tools.gate.normalise import Normalised, normalise
from fib_tools.host.locks import hold
from fib_tools.model.definition import Definition
from fib_tools.model.tags import Tag, merge_tags
from fib_tools.op_types.base import Parameters
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases.admissions import admission_entry, stage
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import workspace_lock
from fib_tools.phases.manifests import model_slug
from fib_tools.phases.outcomes import DefineEntry, DefineResult, find_shared
from fib_tools.sources.dumps import RawDump, load_raw_dumps

__all__ = ["Dump", "read_dumps", "run_gate", "stage_dumps"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dump:
    """A raw dump, and what the normaliser made of it."""

    raw: RawDump
    normalised: Normalised

    @property
    def definition(self) -> Definition:
        """The Definition; ask only one that was not refused."""
        if self.normalised.definition is None:
            raise ValueError("a refused dump has no Definition")
        return self.normalised.definition


def stage_dumps(context: Context, folder: Path, *, model: str | None, dry_run: bool) -> DefineResult:
    """Normalise every raw dump of a folder, and stage what passes the gate; one broken dump stops no other.

    Raises:
        RequestError: when the folder is not there or holds no JSON file.
    """
    slug = model_slug(model) if model else None
    good, entries = read_dumps(folder)
    if dry_run:
        entries += [
            DefineEntry(name=dump.definition.name, status="would define", remarks=dump.normalised.changes)
            for dump in good
        ]
    else:
        with hold(workspace_lock(context), purpose=f"staging the dumps of {folder}"):
            context.sweep()
            entries += run_gate(context, good, tags=[[str(Tag(key="model", value=slug))] if slug else []] * len(good))
    return DefineResult(
        subject=str(folder),
        dataset=str(context.dataset.root),
        entries=tuple(entries),
        shared=find_shared(context, {entry.name for entry in entries}),
    )


def read_dumps(folder: Path) -> tuple[list[Dump], list[DefineEntry]]:
    """Read and normalise the raw dumps of a folder; return the good ones, and what became of the others.

    Raises:
        RequestError: when the folder is not there or holds no JSON file.
    """
    if not folder.is_dir():
        raise RequestError("there is no such folder", where=str(folder), todo="pass the folder that holds the dumps")
    found = list(load_raw_dumps(folder))
    if not found:
        raise RequestError("no dump in it", where=str(folder), todo="pass FLASHINFER_TRACE_DUMP_DIR of the run")
    raws = [dump for dump in found if isinstance(dump, RawDump)]
    refused = [
        DefineEntry(name=PurePosixPath(dump.where).stem, status="refused", reason=dump.message)
        for dump in found
        if not isinstance(dump, RawDump)
    ]
    dumps = [Dump(raw=raw, normalised=normalise(raw.data, siblings=_siblings(raw, raws))) for raw in raws]
    refused += [
        DefineEntry(
            name=_stem(dump.raw.path),
            status="refused",
            reason=dump.normalised.refused or "",
            remarks=dump.normalised.changes,
        )
        for dump in dumps
        if dump.normalised.definition is None
    ]
    return [dump for dump in dumps if dump.normalised.definition is not None], refused


def _siblings(dump: RawDump, others: Iterable[RawDump]) -> list[dict[str, Any]]:
    """Return the dumps of the same run, which stand in the same folder."""
    return [other.data for other in others if other.path.parent == dump.path.parent]


def _stem(path: Path) -> str:
    """Name a dump by its file; bytes that are no text, which no document can hold, are escaped."""
    return path.stem.encode("utf-8", "backslashreplace").decode()


def run_gate(context: Context, dumps: Sequence[Dump], *, tags: Sequence[Sequence[str]]) -> list[DefineEntry]:
    """Stage what passes the gate, with these tags for each; the caller holds the workspace's lock."""
    standing, _ = context.dataset.load_definitions(context.tell_if_slow("reading the dataset"))
    entries: dict[int, DefineEntry] = {}
    candidates = [_candidate(dump.normalised, own) for dump, own in zip(dumps, tags, strict=True)]
    # the gate may pass on another candidate than it was given, but always with the Definition that came
    places = {id(candidate.definition): place for place, candidate in enumerate(candidates)}
    context.progress("starting the sandbox", 0, 0)
    with open_sandbox() as sandbox:
        admissions = admit(
            candidates,
            index=standing,
            stage=partial(stage, context),
            sandbox=sandbox,
            report=context.tell_if_slow("comparing with the dataset"),
        )
        for done, admission in enumerate(admissions, start=1):
            context.progress(f"executing references: {admission.name}", done, len(candidates))
            place = places[id(admission.candidate.definition)]
            entries[place] = admission_entry(context, admission, remarks=dumps[place].normalised.changes)
    return [entries[place] for place in sorted(entries)]


def _candidate(item: Normalised, tags: Sequence[str]) -> Candidate:
    candidate = to_candidate(item)
    definition = candidate.definition
    definition = definition.model_copy(update={"tags": merge_tags(definition.tags, tags)})
    return replace(candidate, definition=definition, qualifier=_qualifier(item))


def _qualifier(item: Normalised) -> str:
    if item.recognised is None:
        return ""
    kernel_type = get_kernel_type(item.recognised.kernel)
    parameters: Parameters = kernel_type.parameters.model_validate(item.recognised.parameters)
    return parameters.qualifier() or parameters.plain_qualifier()
