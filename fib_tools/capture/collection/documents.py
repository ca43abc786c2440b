"""Candidates as Workloads, and the blobs that they name: each written once, under the hash of what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fib_tools.capture.collection.candidates import Candidate, Share, hash_tensors
from fib_tools.capture.collection.receipt import counting
from fib_tools.dataset.layout import Kind, Location
from fib_tools.dataset.store import Dataset, Written
from fib_tools.model.definition import Definition
from fib_tools.model.trace import Trace
from fib_tools.model.workload import (
    InputSpec,
    Origin,
    RandomInput,
    SafetensorsInput,
    ScalarInput,
    Workload,
    workload_uuid,
)

if TYPE_CHECKING:
    import torch

__all__ = ["Draft", "make_draft", "write_drafts"]

_HASH_LENGTH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A Workload, and what goes into a dataset with it."""

    workload: Workload
    at: Location | None = None
    """Where its blob goes; None when it keeps no tensor."""
    blob: bytes = b""
    folders: Sequence[Path] = ()
    """Of the calls that it counts, where they are to be removed."""


def make_draft(definition: Definition, candidate: Candidate, origin: Origin) -> Draft:
    """Make the Workload of a candidate; its uuid follows from its lengths, scalars and tensors."""
    at = _place_blob(definition, candidate.tensors) if candidate.tensors else None
    inputs = {name: _make_input(name, candidate, str(at)) for name in definition.inputs}
    axes = dict(candidate.axes)
    workload = Workload(
        axes=axes,
        inputs=inputs,
        uuid=workload_uuid(definition.name, axes, inputs),
        count=candidate.count,
        origin=origin,
        scales=dict(candidate.scales),
    )
    return Draft(workload=workload, at=at, blob=_pack(candidate.tensors) if at else b"", folders=candidate.folders)


def _make_input(name: str, candidate: Candidate, path: str) -> InputSpec:
    if name in candidate.tensors:
        return SafetensorsInput(path=path, tensor_key=name)
    if name in candidate.scalars:
        return ScalarInput(value=candidate.scalars[name])
    return RandomInput()


def _place_blob(definition: Definition, tensors: Mapping[str, torch.Tensor]) -> Location:
    return Location(
        kind=Kind.BLOB,
        op_type=definition.op_type,
        definition=definition.name,
        file=f"{hash_tensors(tensors)[:_HASH_LENGTH]}.safetensors",
    )


def _pack(tensors: Mapping[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    data: bytes = save({name: values.contiguous().clone() for name, values in sorted(tensors.items())})
    return data


def write_drafts(
    dataset: Dataset,
    definition: Definition,
    drafts: Sequence[Draft],
    *,
    adds: bool = False,
    receipt: Path | None = None,
    share: Share | None = None,
) -> tuple[Written, list[Path]]:
    """Write Workloads beside those that stand; one that stands is described as it is now.

    Its count is the new one, or with `adds` the sum: then these are other calls than those that it was counted by.
    Calls of another origin are not added, since they are no more of the same traffic.
    What a `share` says was written before is taken back first, so that the drafts may be others of the same calls.
    With a `receipt`, the calls that are to be removed are, and are not counted again if the process ends before.

    Blobs come first, so that no Workload names one that is not there; those of a write that fails are taken back.
    Returns what became of the file, and the blobs that are new.

    Raises:
        RequestError: a blob that says something else has the name of one of these.
        StorageError: the disk refuses.
    """
    share = share or Share()
    standing = {
        item.uuid: item
        for item in (_subtract(each, share) for each in dataset.load_workloads(definition.op_type, definition.name))
        if item is not None
    }
    fresh = [_add(draft.workload, standing.get(draft.workload.uuid)) if adds else draft.workload for draft in drafts]
    merged = {**standing, **{workload.uuid: workload for workload in fresh}}
    traces = [Trace(definition=definition.name, workload=workload) for workload in merged.values()]
    calls = [folder for draft in drafts for folder in draft.folders]
    place = definition.op_type, definition.name
    with counting(receipt, dataset, place, fresh, calls) if receipt and calls else nullcontext():
        made: list[Path] = []
        try:
            made.extend(path for path in (_write_blob(dataset, draft) for draft in drafts) if path is not None)
            written = dataset.write_workloads(definition.op_type, traces)
        except BaseException:
            for path in made:
                path.unlink(missing_ok=True)
            raise
        share.counts = {draft.workload.uuid: draft.workload.count or 0 for draft in drafts}
        share.blobs.update(made)
        _drop_blobs(dataset, share, merged.values())
    return written, made


def _subtract(workload: Workload, share: Share) -> Workload | None:
    """Take back what was counted before; None where nothing else was."""
    before = share.counts.get(workload.uuid, 0)
    if not before:
        return workload
    left = (workload.count or 0) - before
    return workload.model_copy(update={"count": left}) if left > 0 else None


def _drop_blobs(dataset: Dataset, share: Share, workloads: Iterable[Workload]) -> None:
    """Remove blobs of what was written before and is not any more."""
    inputs = (item for workload in workloads for item in workload.inputs.values())
    named = {dataset.root / item.path for item in inputs if isinstance(item, SafetensorsInput)}
    for path in share.blobs - named:
        path.unlink(missing_ok=True)
    share.blobs &= named


def _add(workload: Workload, standing: Workload | None) -> Workload:
    if standing is None or standing.origin != workload.origin:
        return workload
    return workload.model_copy(update={"count": (workload.count or 0) + (standing.count or 0) or None})


def _write_blob(dataset: Dataset, draft: Draft) -> Path | None:
    """Write a Workload's blob; return its path if it is new."""
    if draft.at is None or dataset.write_blob(draft.at, draft.blob) is not Written.CREATED:
        return None
    return dataset.root / str(draft.at)
