"""Phase 1, discover, for one model: every kernel it needs, where each stands, and who says so."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from fib_tools.host.locks import hold
from fib_tools.model.manifest import DefineStatus, Manifest, ManifestKernel
from fib_tools.model.progress import Asked
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.kept_config import keep_config
from fib_tools.phases.manifests import (
    Standing,
    find_manifest,
    manifest_name,
    merge_manifests,
    narrow_manifest,
    save_manifest,
)
from fib_tools.phases.request import DEFAULTS, ModelArgument, ModelOptions, check_op_types

if TYPE_CHECKING:
    from fib_tools.phases.survey import Survey

__all__ = ["KERNEL_FIELDS", "InventoryResult", "keep_survey", "refresh_manifest", "take_inventory", "workspace_lock"]

KERNEL_FIELDS = (
    "name",
    "op_type",
    "tp",
    "ep",
    "page_sizes",
    "fi_status",
    "sgl_status",
    "phase1_status",
    "define_status",
    "define_reason",
    "definition",
)
"""What an agent is shown of a kernel; its witnesses and parameters on demand."""

_LEGEND = (
    "FlashInfer: template = has the kernel and a trace template, fi_supported = the kernel only, fi_missing = neither; "
    "SGLang: whether it calls FlashInfer's kernel"
)


class InventoryResult(Result):
    """The manifest, and where it was written."""

    rows = "manifest.kernels"
    row_fields = KERNEL_FIELDS

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
        lines = [_LEGEND, *(f"serving: {point}" for point in manifest.serving)]
        lines += [f"refused: {entry.subject}: {entry.reason}" for entry in manifest.refused]
        lines += [f"disagreement: {entry.subject}: {entry.chosen}" for entry in manifest.disagreements]
        lines += [f"unexplained: {entry.operation} in {entry.module} {entry.detail}" for entry in manifest.unexplained]
        lines += [f"note: {text}" for text in manifest.notes]
        counts = Counter(_standing(kernel) for kernel in manifest.kernels)
        said = ", ".join(f"{count} {word}" for word, count in counts.items())
        lines.append(f"{len(manifest.kernels)} kernels ({said}); manifest: {self.path}")
        return Summary(tables=(table,), lines=tuple(lines))


def _standing(kernel: ManifestKernel) -> str:
    """Say where a kernel stands: as phase 1 found it, or as phase 2 left it."""
    is_open = kernel.define_status is DefineStatus.PENDING
    return kernel.phase1_status.value if is_open else kernel.define_status.value


def _row(kernel: ManifestKernel) -> tuple[str, ...]:
    sizes = (("tp", kernel.tp), ("ep", kernel.ep if kernel.ep != (1,) else ()), ("ps", kernel.page_sizes))
    served = " ".join(f"{key}{','.join(map(str, values))}" for key, values in sizes if values)
    witnesses = " ".join(dict.fromkeys(witness.source.value for witness in kernel.witnesses))
    return (
        kernel.definition or kernel.name,
        served,
        _standing(kernel),
        "template" if kernel.fi_trace_template else kernel.fi_status.value,
        kernel.sgl_status.value,
        witnesses,
    )


def take_inventory(context: Context, model: ModelArgument, options: ModelOptions = DEFAULTS) -> InventoryResult:
    """List every kernel that a model needs, from its config and structure, with the witnesses of each.

    Default: the NVIDIA configurations of the sgl-cookbook. Lists what was asked for; the model's manifest in the
    workspace also keeps the kernels of earlier runs.
    """
    context.workspace.create()
    with hold(workspace_lock(context), purpose="an onboarding"):
        standing = refresh_manifest(context, model, options, is_look=True)
    return InventoryResult(path=str(context.workspace.root / standing.name), manifest=standing.asked)


def workspace_lock(context: Context) -> Path:
    """Name the lock that the writers of a workspace hold."""
    return context.workspace.root / ".onboard.lock"


def refresh_manifest(context: Context, model: str, options: ModelOptions, *, is_look: bool = False) -> Standing:
    """Take the inventory and merge it into the model's manifest; the caller holds the workspace's lock.

    What is only looked at is not what a later phase goes on with.
    """
    # it loads a hundred classes, which `fib --help` can do without
    from fib_tools.phases.survey import survey_model

    check_op_types(options.op_types)
    return keep_survey(context, survey_model(context, model, options), options, is_look=is_look)


def keep_survey(context: Context, survey: Survey, options: ModelOptions, *, is_look: bool = False) -> Standing:
    """Merge what a survey found into the model's manifest; the caller holds the workspace's lock."""
    from fib_tools.phases.classify import build_manifest

    standing, _ = context.dataset.load_definitions()
    fresh = build_manifest(survey, standing, options.op_types)
    found = find_manifest(context.workspace, fresh.model)
    name = found[0] if found else manifest_name(fresh.model, datetime.now(timezone.utc).date())
    merged = merge_manifests(found[1], fresh) if found else fresh
    manifest = merged if is_look else merged.model_copy(update={"asked": _keep_request(options)})
    keep_config(context, survey.config)
    is_new = save_manifest(context.workspace, name, manifest)
    return Standing(name=name, whole=manifest, asked=narrow_manifest(manifest, fresh), is_new=is_new)


def _keep_request(options: ModelOptions) -> Asked | None:
    """Keep what a later phase, on another machine, is to go on with: no path is among it."""
    asked = Asked(**{name: getattr(options, name) for name in Asked.model_fields})
    return None if asked == Asked() else asked
