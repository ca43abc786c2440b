"""`fib onboard`: one model, or with --discover all that are new, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from pydantic import Field

from fib_tools.errors import FibError, RequestError
from fib_tools.model.base import Model
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.collect_options import USUAL, CollectOptions
from fib_tools.phases.context import Context
from fib_tools.phases.discover import discover_models
from fib_tools.phases.onboard import DryRunArgument, OnboardResult, PhasesArgument, SkipArgument, onboard_model
from fib_tools.phases.onboard_submit import SHOWN, SubmitOptions
from fib_tools.phases.request import COMMAND_LINE_ONLY, DEFAULTS, NEEDED_BY_AGENTS, ModelOptions

__all__ = ["OnboardAllResult", "OnboardLine", "onboard"]


_FILES = "sglang"
"""A source that tells of files, and of no model that could be asked for."""


class OnboardLine(Model):
    """What became of one new model."""

    model: str
    status: str
    """`done`; `with errors`, which its manifest and page tell; `failed`: it could not be onboarded; `left`: over the limit."""
    kernels: int = 0
    defined: int = 0
    refused: int = 0
    detail: str = ""
    """The manifest, or why it failed."""


class OnboardAllResult(Result):
    """What became of the models that are new."""

    rows = "models"

    models: tuple[OnboardLine, ...]
    basis: tuple[str, ...]
    """Where new models were looked for."""

    @property
    def has_errors(self) -> bool:
        """A model that failed, or has errors of its own, is an error."""
        return any(line.status in {"failed", "with errors"} for line in self.models)

    def summary(self) -> Summary:
        """List the models."""
        columns = ("model", "status", "kernels", "defined", "refused", "")
        rows = tuple(
            (line.model, line.status, str(line.kernels), str(line.defined), str(line.refused), line.detail)
            for line in self.models
        )
        tables = (Table(title="new models", columns=columns, rows=rows),) if rows else ()
        done = sum(line.status in {"done", "with errors"} for line in self.models)
        return Summary(tables=tables, lines=(*self.basis, f"{done} of {len(rows)} new models onboarded"))


def onboard(
    context: Context,
    model: Annotated[
        str | None,
        Field(description="A known name (kimi-k2), a Hugging Face repository (org/name) or a folder with config.json."),
        NEEDED_BY_AGENTS,
    ] = None,
    options: ModelOptions = DEFAULTS,
    collecting: Annotated[CollectOptions, COMMAND_LINE_ONLY] = USUAL,
    submitting: Annotated[SubmitOptions, COMMAND_LINE_ONLY] = SHOWN,
    *,
    phases: PhasesArgument = (0, 1, 2),
    skip_existing: SkipArgument = True,
    dry_run: DryRunArgument = False,
    discover: Annotated[
        bool, Field(description="Onboard the models that are new, in place of MODEL."), COMMAND_LINE_ONLY
    ] = False,
    limit: Annotated[
        int, Field(ge=1, le=1000, description="The most models that --discover onboards."), COMMAND_LINE_ONLY
    ] = 5,
) -> Result:
    """Onboard a model: every kernel Definition for the serving configurations people use, validated and executed.

    Phases 0 to 2 need no GPU and no weights, and for known models no network; 3 tests, collects and measures on a GPU.
    Run it again to go on after an interruption, also in a workspace that was carried to another machine.
    """
    if discover == (model is not None):
        raise RequestError(
            "MODEL and --discover exclude each other" if discover else "no model given",
            todo="run: fib onboard kimi-k2, or fib onboard --discover",
        )
    run = partial(
        onboard_model,
        context,
        options=options,
        collecting=collecting,
        submitting=submitting,
        phases=phases,
        skip_existing=skip_existing,
        dry_run=dry_run,
    )
    return _onboard_all(context, options, limit, run) if model is None else run(model)


def _onboard_all(
    context: Context, options: ModelOptions, limit: int, run: Callable[[str], OnboardResult]
) -> OnboardAllResult:
    """Onboard what is new, one after the other: what is wrong with one does not stop the others."""
    found = discover_models(context, hardware=options.hardware)
    new = [each.model for each in found.discoveries if not each.onboarded and each.source != _FILES]
    lines, done = [], 0
    for name in new:
        if done == limit:
            lines.append(OnboardLine(model=name, status="left", detail=f"over --limit {limit}"))
            continue
        context.progress(f"onboarding {name}", done, min(limit, len(new)))
        try:
            lines.append(_describe(name, run(name)))
            done += 1
        except FibError as error:  # or one that cannot be read would keep its place in every run
            lines.append(OnboardLine(model=name, status="failed", detail=str(error)))
    files = sum(each.source == _FILES for each in found.discoveries)
    unnamed = (f"{files} new files of SGLang name no repository: fib discover lists them",) * bool(files)
    return OnboardAllResult(models=tuple(lines), basis=(*found.basis, *unnamed))


def _describe(model: str, result: OnboardResult) -> OnboardLine:
    kernels = result.manifest.kernels
    return OnboardLine(
        model=model,
        status="with errors" if result.has_errors else "done",
        kernels=len(kernels),
        defined=sum(kernel.staged is not None for kernel in kernels),
        refused=sum(kernel.define_status.value == "refused" for kernel in kernels),
        detail=result.problem or result.manifest_path,
    )
