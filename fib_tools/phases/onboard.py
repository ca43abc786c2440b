"""The pipeline: the phases in order over one manifest, each picking up where an earlier run ended."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fib_tools.errors import RequestError
from fib_tools.host.locks import hold
from fib_tools.model.manifest import Manifest, SourceVersion
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import KERNEL_FIELDS, InventoryResult, refresh_manifest, workspace_lock
from fib_tools.phases.manifests import find_manifest, narrow_manifest
from fib_tools.phases.outcomes import DefineResult
from fib_tools.phases.request import DEFAULTS, ModelArgument, ModelOptions

__all__ = ["OnboardResult", "onboard_model"]

_AVAILABLE = (0, 1, 2)
_LATER = {3: "collect (workloads need a GPU)", 4: "submit (pull requests)"}


class OnboardResult(Result):
    """What each phase came to."""

    rows = "manifest.kernels"
    row_fields = KERNEL_FIELDS

    model: str
    manifest_path: str
    manifest: Manifest
    sources: dict[str, SourceVersion]
    defined: DefineResult | None = None
    not_run: tuple[str, ...] = ()
    """Phases that were asked for and are not part of this version."""

    @property
    def has_errors(self) -> bool:
        """A refused kernel is an error, and so is a model that could not be served at all."""
        inventory = InventoryResult(path=self.manifest_path, manifest=self.manifest)
        return inventory.has_errors or (self.defined is not None and self.defined.has_errors)

    def summary(self) -> Summary:
        """Show the kernels, then what was defined and where it is."""
        inventory = InventoryResult(path=self.manifest_path, manifest=self.manifest).summary()
        sources = Table(
            title="sources",
            columns=("source", "origin", "version"),
            rows=tuple((name, entry.origin, entry.version[:40]) for name, entry in self.sources.items()),
        )
        defined = self.defined.summary() if self.defined else Summary()
        later = tuple(f"not run: phase {text}" for text in self.not_run)
        return Summary(
            tables=(sources, *inventory.tables, *defined.tables), lines=(*inventory.lines, *later, *defined.lines)
        )


def onboard_model(
    context: Context,
    model: ModelArgument,
    options: ModelOptions = DEFAULTS,
    *,
    phases: Annotated[
        tuple[Annotated[int, Field(ge=0, le=4)], ...],
        Field(description="0 refresh, 1 discover, 2 define; 3 collect and 4 submit come later.", min_length=1),
    ] = (0, 1, 2),
    skip_existing: Annotated[bool, Field(description="Leave kernels alone that were defined before.")] = True,
    dry_run: Annotated[bool, Field(description="Say what would be defined; the dataset is not touched.")] = False,
) -> OnboardResult:
    """Onboard a model: every kernel Definition for the serving configurations people use, validated and executed.

    Needs no GPU and no weights, and for known models no network. Run it again to go on after an interruption.
    """
    later = tuple(f"{phase} {_LATER[phase]}" for phase in phases if phase in _LATER)
    if not set(phases) & set(_AVAILABLE):
        raise RequestError(f"phase {later[0]} is not part of this version", todo="use --phases 0,1,2")
    # the gate is heavy, and `fib --help` can do without it
    from fib_tools.phases.staging import define_kernels

    context.workspace.create()
    with hold(workspace_lock(context), purpose=f"the onboarding of {model}"):
        context.sweep()
        standing = refresh_manifest(context, model, options)
        manifest, defined = standing.asked, None
        if 2 in phases:
            defined = define_kernels(context, standing, skip_existing=skip_existing, dry_run=dry_run)
            found = find_manifest(context.workspace, manifest.model)
            manifest = narrow_manifest(found[1], manifest) if found else manifest
    return OnboardResult(
        model=manifest.model,
        manifest_path=str(context.workspace.root / standing.name),
        manifest=manifest,
        sources=manifest.sources,
        defined=defined,
        not_run=later,
    )
