"""Phase 1, discover, for one model: every kernel it needs, where each stands, and who says so."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from fib_tools.host.locks import hold
from fib_tools.model.manifest import Manifest, ManifestKernel
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import find_manifest, manifest_name, merge_manifests, save_manifest
from fib_tools.phases.request import DEFAULTS, ModelArgument, ModelOptions, check_op_types

__all__ = ["InventoryResult", "refresh_manifest", "take_inventory", "workspace_lock"]


class InventoryResult(Result):
    """The manifest, and where it was written."""

    path: str
    manifest: Manifest

    @property
    def has_errors(self) -> bool:
        """A model without a kernel, since every way of serving it was refused, is an error."""
        return not self.manifest.kernels and bool(self.manifest.refused)

    def summary(self) -> Summary:
        """List the kernels, then what is open."""
        manifest = self.manifest
        columns = ("definition", "served as", "dataset", "FlashInfer", "SGLang", "witnesses")
        table = Table(
            title=f"kernels of {manifest.repo_id or manifest.model}",
            columns=columns,
            rows=tuple(_row(kernel) for kernel in manifest.kernels),
        )
        lines = [f"serving: {point}" for point in manifest.serving]
        lines += [f"refused: {entry.subject}: {entry.reason}" for entry in manifest.refused]
        lines += [f"disagreement: {entry.subject}: {entry.chosen}" for entry in manifest.disagreements]
        lines += [f"unexplained: {entry.operation} in {entry.module} {entry.detail}" for entry in manifest.unexplained]
        lines += [f"note: {text}" for text in manifest.notes]
        new = sum(kernel.phase1_status.value == "new" for kernel in manifest.kernels)
        lines.append(f"{len(manifest.kernels)} kernels, {new} new to the dataset; manifest: {self.path}")
        return Summary(tables=(table,), lines=tuple(lines))


def _row(kernel: ManifestKernel) -> tuple[str, ...]:
    sizes = (("tp", kernel.tp), ("ep", kernel.ep if kernel.ep != (1,) else ()), ("ps", kernel.page_sizes))
    served = " ".join(f"{key}{','.join(map(str, values))}" for key, values in sizes if values)
    witnesses = " ".join(dict.fromkeys(witness.source.value for witness in kernel.witnesses))
    return (
        kernel.definition or kernel.name,
        served,
        kernel.phase1_status.value,
        "template" if kernel.fi_trace_template else kernel.fi_status.value,
        kernel.sgl_status.value,
        witnesses,
    )


def take_inventory(context: Context, model: ModelArgument, options: ModelOptions = DEFAULTS) -> InventoryResult:
    """List every kernel that a model needs, from its config and structure, with the witnesses of each.

    Default: the NVIDIA configurations of the sgl-cookbook. Writes the model's manifest into the workspace.
    """
    context.workspace.create()
    with hold(workspace_lock(context), purpose="an onboarding"):
        path, manifest = refresh_manifest(context, model, options)
    return InventoryResult(path=path, manifest=manifest)


def workspace_lock(context: Context) -> Path:
    """Name the lock that the writers of a workspace hold."""
    return context.workspace.root / ".onboard.lock"


def refresh_manifest(context: Context, model: str, options: ModelOptions) -> tuple[str, Manifest]:
    """Take the inventory and merge it into the model's manifest; the caller holds the workspace's lock."""
    # these load a hundred classes, which `fib --help` can do without
    from fib_tools.phases.classify import build_manifest
    from fib_tools.phases.survey import survey_model

    check_op_types(options.op_types)
    survey = survey_model(context, model, options)
    standing, _ = context.dataset.load_definitions()
    fresh = build_manifest(survey, standing, options.op_types)
    found = find_manifest(context.workspace, fresh.model)
    name = found[0] if found else manifest_name(fresh.model, datetime.now(timezone.utc).date())
    manifest = merge_manifests(found[1], fresh) if found else fresh
    save_manifest(context.workspace, name, manifest)
    return str(context.workspace.root / name), manifest
