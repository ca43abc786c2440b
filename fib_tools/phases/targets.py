"""Targets: the kernels of a model by what a faster one would save, so that a search is spent where the time is."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fib_tools.dataset.store import Dataset
from fib_tools.draft.ranking import Standing, rank_kernels
from fib_tools.errors import RequestError
from fib_tools.evaluate.report.report_reading import read_measurements
from fib_tools.host.hardware import NO_GPU
from fib_tools.model.manifest import Manifest
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import find_manifest

__all__ = ["TargetsResult", "list_targets"]

_SHOWN = 20


class TargetsResult(Result):
    """Where the time of a model is."""

    rows = "targets"
    row_fields = ("definition", "layers", "milliseconds", "limit_ms", "share", "gain", "author")

    model: str
    tp: int
    device: str
    targets: tuple[Standing, ...]
    unmeasured: tuple[str, ...] = ()
    """Definitions of the model without a right Solution whose share of the limit is known."""

    def summary(self) -> Summary:
        """Show the largest gains first, and what is not known."""
        rows = tuple(
            (
                row.definition,
                str(row.layers),
                f"{1e3 * row.milliseconds:.4g}",
                f"{1e3 * row.limit_ms:.4g}",
                f"{row.share:.1%}",
                f"{row.gain:.1%}",
                row.author,
            )
            for row in self.targets[:_SHOWN]
        )
        columns = ("definition", "layers", "us a call", "limit us", "share", "to gain", "fastest by")
        lines = [f"{self.model}, TP {self.tp}, on {self.device}: {len(self.targets)} kernels measured"]
        if self.unmeasured:
            lines.append(
                f"{len(self.unmeasured)} are not, such as {self.unmeasured[0]}: fib baselines write, then fib bench"
            )
        if self.targets:
            lines.append(f"begin with: fib optimize {self.targets[0].definition}")
        tables = (Table(title=f"kernels of {self.model}", columns=columns, rows=rows),) if rows else ()
        return Summary(tables=tables, lines=tuple(lines))


def list_targets(
    context: Context,
    model: Annotated[str, Field(description="A model that was onboarded in this workspace.")],
    *,
    tp: Annotated[
        int | None,
        Field(ge=1, le=1024, description="Of this tensor-parallel size; the one with the most kernels if left out."),
    ] = None,
    gpu: Annotated[
        str | None, Field(description="Measured on this model of GPU; the one with the most measurements if left out.")
    ] = None,
) -> TargetsResult:
    """List a model's kernels by what a faster one would save: their layers, times so far, and the limits of the device.

    The fastest right Solution of each counts, so that the list changes as searches win.
    """
    found = find_manifest(context.workspace, model)
    if found is None:
        raise RequestError(
            f"{model} was not onboarded here", where=str(context.workspace.root), todo=f"run: fib onboard {model}"
        )
    _, manifest = found
    size = tp or _choose_size(manifest)
    layers = {
        kernel.definition or kernel.name: kernel.layers
        for kernel in manifest.kernels
        if not kernel.tp or size in kernel.tp
    }
    dataset = Dataset.open(context.dataset.root)
    measured = [
        each
        for each in read_measurements(dataset, definitions=layers.keys()).measurements
        if each.measured_by == "fib-tools"
    ]
    devices = [each.device for each in measured if gpu is None or gpu.casefold() in each.device.casefold()]
    device = max(devices, key=devices.count, default=gpu or NO_GPU)
    targets = rank_kernels(layers, [each for each in measured if each.device == device])
    return TargetsResult(
        model=manifest.model,
        tp=size,
        device=device,
        targets=targets,
        unmeasured=tuple(sorted(layers.keys() - {row.definition for row in targets})),
    )


def _choose_size(manifest: Manifest) -> int:
    sizes = [size for kernel in manifest.kernels for size in kernel.tp]
    return max(sorted(set(sizes)), key=sizes.count, default=1)
