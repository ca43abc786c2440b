"""Manifests on disk: found by model, written atomically, merged without losing a status."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from fib_tools.errors import FormatError, RequestError
from fib_tools.host.files import read_limited, write_atomically
from fib_tools.host.paths import confine, slugify
from fib_tools.model.base import read_strict
from fib_tools.model.canonical import canonical_bytes, content_hash, load_json
from fib_tools.model.kernel import Witness, WitnessSource
from fib_tools.model.manifest import DefineStatus, Manifest, ManifestKernel
from fib_tools.phases.context import Workspace
from fib_tools.sources.registry import find_model

__all__ = [
    "Standing",
    "add_witnesses",
    "find_manifest",
    "kernel_key",
    "list_manifests",
    "manifest_model",
    "manifest_name",
    "merge_manifests",
    "model_slug",
    "narrow_manifest",
    "save_manifest",
]

_LIMIT = 32 << 20
_SIZES = ("tp", "ep", "page_sizes")
_NAME = re.compile(r"onboard_(?P<model>.+)_(?P<date>\d{4}-\d{2}-\d{2})\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A model's manifest as it stands, and the part of it that this run was asked for."""

    name: str
    """Of its file."""
    whole: Manifest
    asked: Manifest
    is_new: bool = False
    """It says something that it did not say before."""


def manifest_name(model: str, day: date) -> str:
    """Name a model's manifest: `onboard_kimi-k2_2026-11-21.json`."""
    return f"onboard_{model}_{day.isoformat()}.json"


def list_manifests(workspace: Workspace) -> tuple[str, ...]:
    """List the manifest files of a workspace, oldest first."""
    names = (path.name for path in workspace.root.glob("onboard_*.json"))
    return tuple(sorted((name for name in names if _NAME.fullmatch(name)), key=_day_and_model))


def manifest_model(name: str) -> str:
    """Read the model's slug off the name of a manifest file."""
    return _day_and_model(name)[1]


def model_slug(model: str) -> str:
    """Name a model as its manifest does."""
    entry = find_model(model)
    return entry.slug if entry else slugify(model.rpartition("/")[2])


def _day_and_model(name: str) -> tuple[str, str]:
    match = _NAME.fullmatch(name)
    return (match["date"], match["model"]) if match else ("", name)


def find_manifest(workspace: Workspace, model: str) -> tuple[str, Manifest] | None:
    """Find a model's latest manifest and the name of its file.

    Raises:
        FormatError: when the file does not hold a manifest of this version.
    """
    names = [name for name in list_manifests(workspace) if _day_and_model(name)[1] == model]
    if not names:
        return None
    return names[-1], _load(workspace, names[-1])


def _load(workspace: Workspace, name: str) -> Manifest:
    text = read_limited(confine(workspace.root, name), _LIMIT)
    try:
        return read_strict(Manifest, load_json(text, where=name), where=name)
    except FormatError as error:
        raise FormatError(error.what, where=name, todo="move that file away to begin anew") from error


def save_manifest(workspace: Workspace, name: str, manifest: Manifest) -> bool:
    """Write a manifest unless it stands there already; tell whether it changed.

    Raises:
        StorageError: when the disk refuses.
    """
    path = confine(workspace.root, name)
    data = canonical_bytes(manifest)
    if path.exists() and read_limited(path, _LIMIT) == data:
        return False
    write_atomically(path, data)
    return True


def kernel_key(kernel: ManifestKernel) -> str:
    """Identify a kernel of a manifest by what it is, so that it is recognised when its witnesses change."""
    return content_hash({"kernel": kernel.kernel, "parameters": kernel.parameters})


def merge_manifests(standing: Manifest, fresh: Manifest) -> Manifest:
    """Take the facts of the fresh manifest, and the progress of the standing one.

    Kernels that only the standing one has stay when work was done for them.

    Raises:
        RequestError: when they are of two repositories whose short names are the same.
    """
    if standing.repo_id and fresh.repo_id and standing.repo_id != fresh.repo_id:
        raise RequestError(
            f"{fresh.repo_id} and {standing.repo_id}, which was onboarded here before, are both called {fresh.model}",
            todo="use another --workspace for one of them",
        )
    done = {kernel_key(kernel): kernel for kernel in standing.kernels}
    kernels = [_with_progress(kernel, done.pop(kernel_key(kernel), None)) for kernel in fresh.kernels]
    kept = [kernel for kernel in done.values() if kernel.define_status is not DefineStatus.PENDING]
    lasting = {name: getattr(standing, name) for name in ("manual", "submissions", "asked", "times")}
    return fresh.model_copy(update={"kernels": (*kernels, *kept), **lasting})


def narrow_manifest(whole: Manifest, asked: Manifest) -> Manifest:
    """Show of a merged manifest what was asked for: those kernels, in those sizes, with the progress of all runs."""
    sizes = {kernel_key(kernel): kernel for kernel in asked.kernels}
    kernels = []
    for kernel in whole.kernels:
        own = sizes.get(kernel_key(kernel))
        if own is not None:
            kernels.append(kernel.model_copy(update={field: getattr(own, field) for field in _SIZES}))
    return whole.model_copy(update={"kernels": tuple(kernels)})


def _with_progress(fresh: ManifestKernel, standing: ManifestKernel | None) -> ManifestKernel:
    if standing is None:
        return fresh
    progress = (
        "phase1_status",
        "define_status",
        "define_reason",
        "definition",
        "executed",
        "fi_name",
        "fi_trace_template_request_url",
        "steps",
    )
    merged = {field: join_sizes(getattr(fresh, field), getattr(standing, field)) for field in _SIZES}
    witnesses = add_witnesses(fresh.witnesses, standing.witnesses, source=WitnessSource.DUMP)
    kept = {field: getattr(standing, field) for field in progress}
    return fresh.model_copy(update={**kept, **merged, "witnesses": witnesses})


def add_witnesses(
    first: tuple[Witness, ...], second: tuple[Witness, ...], *, source: WitnessSource
) -> tuple[Witness, ...]:
    """Add the witnesses of one source, which an inventory taken later does not see."""
    return tuple(dict.fromkeys((*first, *(witness for witness in second if witness.source is source))))


def join_sizes(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """Join two sorted sets of sizes."""
    return tuple(sorted({*first, *second}))
