"""The page at the end of an onboarding: what the manifest and the dataset say, beside the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.report.report_reading import Reading, read_measurements
from fib_tools.evaluate.report.report_tables import build_report
from fib_tools.host.files import write_atomically
from fib_tools.host.paths import confine
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import Manifest, ManifestKernel
from fib_tools.model.solution import BASELINE
from fib_tools.phases.context import Context
from fib_tools.phases.submit_result import SubmitResult
from fib_tools.publish.outward import Failure

if TYPE_CHECKING:
    from fib_tools.publish.onboard_page import KernelView, RequestView

__all__ = ["write_onboard_page"]

_VERIFIED = "status:verified"


def write_onboard_page(context: Context, name: str, manifest: Manifest, submitted: SubmitResult | None = None) -> Path:
    """Write the page of a manifest, whose file has this name; one that says the same stays as it is."""
    # the page is heavy, and `fib --help` can do without it
    from fib_tools.publish.onboard_page import OnboardView, format_onboard_page

    dataset = context.dataset
    loaded = dataset.load_definitions()[0] if dataset.root.is_dir() else {}
    names = {kernel.staged for kernel in manifest.kernels if kernel.staged in loaded}
    reading = _read(dataset, names)
    view = OnboardView(
        manifest=manifest,
        manifest_name=name,
        kernels=tuple(_view(dataset, kernel, loaded) for kernel in manifest.kernels),
        report=build_report(reading),
        requests=tuple(_list_requests(manifest, submitted)),
        held_back=tuple(
            f"{item.definition or item.group}, {item.check}: {item.found}" for item in _held_back(submitted)
        ),
    )
    path = confine(context.workspace.root, name.removesuffix(".json") + ".html")
    data = format_onboard_page(view).encode()
    if not path.is_file() or path.read_bytes() != data:
        write_atomically(path, data)
    return path


def _list_requests(manifest: Manifest, submitted: SubmitResult | None) -> Iterator[RequestView]:
    """List what is open, then what this run would open."""
    from fib_tools.publish.onboard_page import RequestView

    for item in manifest.submissions:
        yield RequestView(kind=item.kind, subject=item.subject, status=item.status, url=item.url)
    known = {item.url for item in manifest.submissions}
    for entry in submitted.entries if submitted else ():
        if entry.url not in known:
            yield RequestView(
                kind=entry.kind,
                subject=entry.subject,
                status=entry.status,
                url=entry.url or entry.repo,
                note=entry.note,
            )


def _held_back(submitted: SubmitResult | None) -> tuple[Failure, ...]:
    return submitted.failures if submitted else ()


def _read(dataset: Dataset, names: set[str]) -> Reading:
    """Read the Traces of the baselines; those of other Solutions belong into `fib report`."""
    found = read_measurements(dataset, definitions=names)
    kept = tuple(each for each in found.measurements if each.author == BASELINE)
    return replace(found, measurements=kept)


def _view(dataset: Dataset, kernel: ManifestKernel, loaded: Mapping[str, Definition]) -> KernelView:
    from fib_tools.publish.onboard_page import KernelView

    definition = loaded.get(kernel.staged or "")
    if definition is None:
        return KernelView(kernel=kernel)
    workloads = dataset.load_workloads(definition.op_type, definition.name)
    solutions, _ = dataset.read_solutions(definition.op_type, definition.name)
    return KernelView(
        kernel=kernel,
        is_verified=_VERIFIED in definition.tags,
        origins=dict(Counter(workload.origin or "of unknown origin" for workload in workloads)),
        baselines=sum(solution.author == BASELINE for solution in solutions),
    )
