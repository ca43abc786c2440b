"""Kernels of a manifest through the gate into the dataset, and the manifest brought up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from fib_tools.gate.execute import open_sandbox
from fib_tools.gate.gate import admit
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import DefineStatus, Manifest, ManifestKernel, Phase1Status
from fib_tools.model.tags import merge_tags
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases.admissions import add_tags, admission_entry, stage
from fib_tools.phases.candidates import KernelCandidate, build_candidates, list_tags
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import Standing, kernel_key, save_manifest
from fib_tools.phases.outcomes import DefineEntry, DefineResult, find_shared

__all__ = ["define_kernels"]


def define_kernels(
    context: Context, standing: Standing, *, skip_existing: bool = True, dry_run: bool = False
) -> DefineResult:
    """Define the kernels that were asked for and are not defined yet; the caller holds the workspace's lock."""
    manifest = standing.asked
    definitions, _ = context.dataset.load_definitions(context.tell_if_slow("reading the dataset"))
    entries: dict[str, DefineEntry] = {}
    todo: list[ManifestKernel] = []
    for kernel in manifest.kernels:
        if skip_existing and _is_done(kernel, definitions):
            entries[kernel_key(kernel)] = _entry_of_done(kernel, definitions)
            if not dry_run:
                _refresh_tags(context, (manifest, kernel), definitions)
        else:
            todo.append(kernel)
    if dry_run:
        entries |= {
            kernel_key(kernel): DefineEntry(name=kernel.name, op_type=kernel.op_type, status="would define")
            for kernel in todo
        }
    elif todo:
        outcomes = _run_gate(context, (manifest, todo), definitions)
        entries |= outcomes
        save_manifest(context.workspace, standing.name, _with_outcomes(standing.whole, outcomes))
    ordered = tuple(entries[kernel_key(kernel)] for kernel in manifest.kernels)
    return DefineResult(
        subject=manifest.model,
        dataset=str(context.dataset.root),
        entries=ordered,
        shared=find_shared(context, {entry.name for entry in ordered}),
    )


def _is_done(kernel: ManifestKernel, definitions: Mapping[str, Definition]) -> bool:
    is_ours = kernel.define_status in {DefineStatus.DEFINED, DefineStatus.EXISTING}
    return is_ours and (kernel.definition or kernel.name) in definitions


def _is_changed(kernel: ManifestKernel, standing: Definition) -> bool:
    """Tell whether somebody changed a Definition after it was defined here; tags may be added."""
    if kernel.define_status is not DefineStatus.DEFINED:
        return False
    built = get_kernel_type(kernel.kernel).build(kernel.parameters)
    return built.model_copy(update={"name": standing.name, "tags": standing.tags}) != standing


def _refresh_tags(
    context: Context, line: tuple[Manifest, ManifestKernel], definitions: Mapping[str, Definition]
) -> None:
    """Give a Definition of an earlier run the tags of what was asked for since, such as another TP."""
    manifest, kernel = line
    standing = definitions[kernel.definition or kernel.name]
    tags = list_tags(manifest, kernel, kernel.fi_name)
    if merge_tags(standing.tags, tags) != standing.tags:
        built = get_kernel_type(kernel.kernel).build(kernel.parameters)
        add_tags(context, standing.name, built.model_copy(update={"tags": merge_tags(built.tags, tags)}))


def _entry_of_done(kernel: ManifestKernel, definitions: Mapping[str, Definition]) -> DefineEntry:
    name = kernel.definition or kernel.name
    if _is_changed(kernel, definitions[name]):
        return DefineEntry(
            name=name,
            op_type=kernel.op_type,
            status="changed",
            reason="the file says something else than was defined; it was left as it is: remove it to define it anew",
        )
    return DefineEntry(
        name=name,
        op_type=kernel.op_type,
        status="defined before" if kernel.define_status is DefineStatus.DEFINED else "existing",
        executed=kernel.executed,
        fi_name=kernel.fi_name,
    )


def _run_gate(
    context: Context, work: tuple[Manifest, list[ManifestKernel]], definitions: Mapping[str, Definition]
) -> dict[str, DefineEntry]:
    manifest, todo = work
    outcomes: dict[str, DefineEntry] = {}
    with open_sandbox() as sandbox:
        context.progress("instantiating FlashInfer's templates", 0, 0)
        candidates = build_candidates(manifest, todo, sandbox=sandbox)
        by_definition = {id(entry.candidate): entry for entry in candidates}
        admissions = admit(
            [entry.candidate for entry in candidates],
            index=_without_own(definitions, candidates),
            stage=partial(stage, context),
            sandbox=sandbox,
            report=context.tell_if_slow("comparing with the dataset"),
        )
        for done, admission in enumerate(admissions, start=1):
            entry = by_definition[id(admission.candidate)]
            context.progress(f"executing references: {admission.name}", done, len(candidates))
            outcomes[kernel_key(entry.kernel)] = admission_entry(
                context, admission, fi_name=entry.fi_name, remarks=entry.remarks
            )
    return outcomes


def _without_own(definitions: Mapping[str, Definition], candidates: Sequence[KernelCandidate]) -> dict[str, Definition]:
    """Leave out what a killed run of this onboarding staged: it runs again, and is then what it would have been."""
    own = {
        entry.candidate.definition.name: entry.candidate.definition
        for entry in candidates
        if entry.kernel.phase1_status is Phase1Status.NEW
    }
    return {
        name: standing
        for name, standing in definitions.items()
        if name not in own or standing != own[name].model_copy(update={"tags": standing.tags})
    }


def _with_outcomes(manifest: Manifest, outcomes: Mapping[str, DefineEntry]) -> Manifest:
    kernels = []
    for kernel in manifest.kernels:
        entry = outcomes.get(kernel_key(kernel))
        kernels.append(kernel if entry is None else kernel.model_copy(update=_progress(kernel, entry)))
    return manifest.model_copy(update={"kernels": tuple(kernels)})


def _progress(kernel: ManifestKernel, entry: DefineEntry) -> dict[str, object]:
    status = {"existing": DefineStatus.EXISTING, "refused": DefineStatus.REFUSED}.get(
        entry.status, DefineStatus.DEFINED
    )
    return {
        "define_status": status,
        "define_reason": entry.reason,
        "definition": None if entry.name == kernel.name else entry.name,
        "executed": entry.executed,
        "fi_name": entry.fi_name,
        "phase1_status": Phase1Status.EXISTING if entry.status == "existing" else kernel.phase1_status,
    }
