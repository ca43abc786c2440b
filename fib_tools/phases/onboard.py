"""The pipeline: the phases in order over one manifest, each picking up where an earlier run ended."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fib_tools.errors import FibError
from fib_tools.host.cpu import read_cpu_name
from fib_tools.host.locks import hold
from fib_tools.model.manifest import Manifest, SourceVersion
from fib_tools.model.progress import PhaseTime, sum_times
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.collect_options import USUAL, CollectOptions
from fib_tools.phases.collect_record import load_manifest, save_time
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import KERNEL_FIELDS, InventoryResult, refresh_manifest, workspace_lock
from fib_tools.phases.kept_config import recall_options
from fib_tools.phases.manifests import Standing, model_slug, narrow_manifest
from fib_tools.phases.onboard_collect import CollectedKernels, collect_kernels
from fib_tools.phases.onboard_page import write_onboard_page
from fib_tools.phases.onboard_submit import SHOWN, SubmitOptions, submit_onboarding
from fib_tools.phases.outcomes import DefineResult
from fib_tools.phases.request import DEFAULTS, ModelArgument, ModelOptions
from fib_tools.phases.submit_result import SubmitResult

__all__ = ["DryRunArgument", "OnboardResult", "PhasesArgument", "SkipArgument", "onboard_model"]

_DEFINING = frozenset({0, 1, 2})
_OLD = frozenset({"defined before", "existing", "changed"})
"""What phase 2 says of kernels that it did not work on."""

PhasesArgument = Annotated[
    tuple[Annotated[int, Field(ge=0, le=4)], ...],
    Field(
        description="0 refresh, 1 discover, 2 define; in a person's shell also 3 collect (a GPU) and 4 submit.",
        min_length=1,
    ),
]
SkipArgument = Annotated[bool, Field(description="Leave alone what was done before.")]
DryRunArgument = Annotated[bool, Field(description="Say what would be done; the dataset is not touched.")]


class OnboardResult(Result):
    """What each phase came to."""

    rows = "manifest.kernels"
    row_fields = KERNEL_FIELDS

    model: str
    manifest_path: str
    manifest: Manifest
    sources: dict[str, SourceVersion]
    defined: DefineResult | None = None
    collected: CollectedKernels | None = None
    submitted: SubmitResult | None = None
    problem: str = ""
    """Why a phase could not run, after others did."""
    page: str = ""
    """An HTML page of all that the manifest and the dataset say of the model."""

    @property
    def has_errors(self) -> bool:
        """A refused kernel is an error, and so is a model that could not be served at all, or a phase that did not run."""
        inventory = InventoryResult(path=self.manifest_path, manifest=self.manifest)
        parts = [part for part in (self.defined, self.collected, self.submitted) if part is not None]
        return inventory.has_errors or bool(self.problem) or any(part.has_errors for part in parts)

    def summary(self) -> Summary:
        """Show the kernels, then what was done of them and where it is."""
        inventory = InventoryResult(path=self.manifest_path, manifest=self.manifest).summary()
        sources = Table(
            title="sources",
            columns=("source", "origin", "version"),
            rows=tuple((name, entry.origin, entry.version[:40]) for name, entry in self.sources.items()),
        )
        parts = [part.summary() for part in (self.submitted, self.collected, self.defined) if part is not None]
        problem = (f"not run: {self.problem}",) if self.problem else ()
        times = ", ".join(f"phase {phase}: {spent:.1f} s" for phase, spent in sum_times(self.manifest.times).items())
        return Summary(
            tables=(sources, *inventory.tables, *(table for part in parts for table in part.tables)),
            lines=(
                *inventory.lines,
                *problem,
                *((f"time in all runs: {times}",) if times else ()),
                *((f"page: {self.page}",) if self.page else ()),
                *(line for part in parts for line in part.lines),
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What phases 0 to 2 came to, or stands where they did not run."""

    name: str
    manifest: Manifest
    defined: DefineResult | None = None


def onboard_model(
    context: Context,
    model: ModelArgument,
    options: ModelOptions = DEFAULTS,
    collecting: CollectOptions = USUAL,
    submitting: SubmitOptions = SHOWN,
    *,
    phases: PhasesArgument = (0, 1, 2),
    skip_existing: SkipArgument = True,
    dry_run: DryRunArgument = False,
) -> OnboardResult:
    """Take one model through phases; those that need what is not here come after those that do not."""
    context.workspace.create()
    if _DEFINING & set(phases):
        part = _define(context, model, options, phases, skip_existing=skip_existing, dry_run=dry_run)
    else:
        part = _find(context, options.hf_repo_id or model, options)
    collected, submitted, problem = None, None, ""
    try:
        if 3 in phases:
            recalled = recall_options(context, part.manifest, options)
            collected = collect_kernels(
                context, part.manifest, recalled, collecting, skip_existing=skip_existing, dry_run=dry_run
            )
        if 4 in phases:
            how = submitting.model_copy(update={"yes": submitting.yes and not dry_run})
            submitted = submit_onboarding(context, part.manifest.model, how)
    except FibError as error:
        if part.defined is None and collected is None:
            raise
        failed = 3 if 3 in phases and collected is None else 4
        problem = f"phase {failed}: {error}" + "; nor phase 4, which comes after it" * (failed == 3 and 4 in phases)
    name, whole = load_manifest(context, part.manifest.model)
    manifest = narrow_manifest(whole, part.manifest)
    page = "" if dry_run else str(write_onboard_page(context, name, whole, submitted))
    return OnboardResult(
        model=manifest.model,
        manifest_path=str(context.workspace.root / name),
        manifest=manifest,
        sources=manifest.sources,
        defined=part.defined,
        collected=collected,
        submitted=submitted,
        problem=problem,
        page=page,
    )


def _find(context: Context, model: str, options: ModelOptions) -> _Part:
    """Take the manifest as it stands, with the op_types that were asked for."""
    name, manifest = load_manifest(context, model_slug(model))
    op_types = options.op_types or (manifest.asked.op_types if manifest.asked else None)
    if op_types is None:
        return _Part(name=name, manifest=manifest)
    kernels = tuple(kernel for kernel in manifest.kernels if kernel.op_type in op_types)
    manual = tuple(item for item in manifest.manual if item.op_type in op_types)
    return _Part(name=name, manifest=manifest.model_copy(update={"kernels": kernels, "manual": manual}))


def _define(
    context: Context,
    model: str,
    options: ModelOptions,
    phases: tuple[int, ...],
    *,
    skip_existing: bool,
    dry_run: bool,
) -> _Part:
    """List the kernels and define them."""
    # the gate is heavy, and `fib --help` can do without it
    from fib_tools.phases.staging import define_kernels

    with hold(workspace_lock(context), purpose=f"the onboarding of {model}"):
        context.sweep()
        begun = time.monotonic()
        standing = refresh_manifest(context, model, options)
        slug = standing.asked.model
        if standing.is_new:
            _spend(context, slug, 1, begun)
            standing = _reread(context, standing)
        if 2 not in phases:
            return _Part(name=standing.name, manifest=standing.asked)
        begun = time.monotonic()
        defined = define_kernels(context, standing, skip_existing=skip_existing, dry_run=dry_run)
        if not dry_run and any(entry.status not in _OLD or entry.seconds for entry in defined.entries):
            _spend(context, slug, 2, begun)
        return _Part(name=standing.name, manifest=_reread(context, standing).asked, defined=defined)


def _spend(context: Context, model: str, phase: int, begun: float) -> None:
    seconds = round(time.monotonic() - begun, 3)
    save_time(context, model, PhaseTime(phase=phase, seconds=seconds, machine=read_cpu_name()))


def _reread(context: Context, standing: Standing) -> Standing:
    whole = load_manifest(context, standing.asked.model)[1]
    return Standing(name=standing.name, whole=whole, asked=narrow_manifest(whole, standing.asked))
