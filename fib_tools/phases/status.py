"""The state of a workspace: clones, dataset, and how far each onboarding has come."""

from __future__ import annotations

from collections import Counter

from pydantic import Field

from fib_tools.dataset.store import count_documents
from fib_tools.errors import FibError
from fib_tools.model.manifest import DefineStatus
from fib_tools.model.progress import Step, sum_times
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import find_manifest, list_manifests, manifest_model

__all__ = ["OnboardingStatus", "StatusResult", "show_status"]


class OnboardingStatus(Result):
    """How far one model has come."""

    model: str
    manifest: str
    kernels: dict[str, int]
    """Kernels by define status."""
    seconds: dict[int, float] = Field(default_factory=dict)
    """That each phase took, in all runs that had something to do."""
    steps: dict[Step, dict[str, int]] = Field(default_factory=dict)
    """Kernels by what came of each step of phase 3."""
    submissions: dict[str, int] = Field(default_factory=dict)
    """Pull requests and issues by their status, as they were last seen."""
    problem: str = ""
    """Why its manifest cannot be read."""


class StatusResult(Result):
    """What a workspace holds."""

    rows = "onboardings"

    workspace: str
    dataset: str
    documents: dict[str, int]
    clones: tuple[str, ...]
    onboardings: tuple[OnboardingStatus, ...]

    @property
    def has_errors(self) -> bool:
        """A manifest that cannot be read is an error."""
        return any(entry.problem for entry in self.onboardings)

    def summary(self) -> Summary:
        """List the onboardings, then what else there is."""
        rows = tuple(
            (entry.model, *_counts(entry), _spell_times(entry), _sent(entry), entry.manifest)
            for entry in self.onboardings
        )
        columns = ("model", *(status.value for status in DefineStatus), "seconds by phase", "submitted", "manifest")
        held = ", ".join(f"{kind}: {count}" for kind, count in self.documents.items()) or "empty"
        lines = (
            *(f"unreadable: {entry.manifest}: {entry.problem}" for entry in self.onboardings if entry.problem),
            *(f"{entry.model}, phase 3: {_spell_steps(entry)}" for entry in self.onboardings if entry.steps),
            f"dataset {self.dataset}: {held}",
            f"clones: {', '.join(self.clones) or 'none (bundled facts are used)'}",
        )
        tables = (Table(title="onboardings", columns=columns, rows=rows),) if rows else ()
        return Summary(tables=tables, lines=(*lines, *(() if rows else ("no onboarding yet; run: fib onboard MODEL",))))


def _counts(entry: OnboardingStatus) -> tuple[str, ...]:
    return tuple(str(entry.kernels.get(status.value, 0)) for status in DefineStatus)


def _spell_times(entry: OnboardingStatus) -> str:
    return ", ".join(f"{phase}: {seconds:.1f}" for phase, seconds in entry.seconds.items())


def _spell_steps(entry: OnboardingStatus) -> str:
    return "; ".join(
        f"{step.value}: {', '.join(f'{count} {status}' for status, count in counts.items())}"
        for step, counts in entry.steps.items()
    )


def _sent(entry: OnboardingStatus) -> str:
    return ", ".join(f"{count} {status}" for status, count in entry.submissions.items())


def show_status(context: Context) -> StatusResult:
    """Show what the workspace holds and how far each onboarding has come."""
    workspace = context.workspace
    names = ("sglang", "flashinfer", "sgl-cookbook", "flashinfer-trace")
    models = sorted({manifest_model(name) for name in list_manifests(workspace)})
    return StatusResult(
        workspace=str(workspace.root),
        dataset=str(context.dataset.root),
        documents=count_documents(context.dataset.files()),
        clones=tuple(name for name in names if workspace.find_clone(name) is not None),
        onboardings=tuple(_onboarding(context, model) for model in models),
    )


def _onboarding(context: Context, model: str) -> OnboardingStatus:
    try:
        found = find_manifest(context.workspace, model)
    except FibError as error:
        newest = [name for name in list_manifests(context.workspace) if manifest_model(name) == model][-1]
        return OnboardingStatus(model=model, manifest=newest, kernels={}, problem=error.what)
    if found is None:
        return OnboardingStatus(model=model, manifest="", kernels={})
    name, manifest = found
    steps: dict[Step, Counter[str]] = {}
    for item in manifest.members:
        for step, record in item.steps.items():
            steps.setdefault(step, Counter())[record.status] += 1
    return OnboardingStatus(
        model=model,
        manifest=name,
        kernels=dict(Counter(kernel.define_status.value for kernel in manifest.kernels)),
        seconds=sum_times(manifest.times),
        steps={step: dict(counts) for step, counts in steps.items()},
        submissions=dict(Counter[str](item.status for item in manifest.submissions)),
    )
