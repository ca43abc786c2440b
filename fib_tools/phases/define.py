"""Phase 2, define: Definitions through the gate into the dataset, from FlashInfer's templates or from raw dumps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fib_tools.errors import RequestError
from fib_tools.host.locks import hold
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import refresh_manifest, workspace_lock
from fib_tools.phases.outcomes import DefineResult
from fib_tools.phases.request import DEFAULTS, ModelOptions

__all__ = ["define_model"]


def define_model(
    context: Context,
    model: Annotated[str | None, Field(description="The model; not needed with --path dump.")] = None,
    options: ModelOptions = DEFAULTS,
    *,
    path: Annotated[
        Literal["template", "dump"],
        Field(description="template: FlashInfer's templates, no GPU; dump: raw dumps of FLASHINFER_TRACE_DUMP."),
    ] = "template",
    from_dir: Annotated[Path | None, Field(description="Folder of raw dumps, for --path dump.")] = None,
    skip_existing: Annotated[bool, Field(description="Leave kernels alone that were defined before.")] = True,
    dry_run: Annotated[bool, Field(description="Say what would be defined; the dataset is not touched.")] = False,
) -> DefineResult:
    """Define a model's kernels, or normalise raw dumps, and stage what passes the gate in the dataset.

    Every reference is executed in an isolated child before its Definition is staged.
    """
    # the gate is heavy, and `fib --help` can do without it
    from fib_tools.phases.dumps import stage_dumps
    from fib_tools.phases.staging import define_kernels

    context.workspace.create()
    if path == "dump":
        if from_dir is None:
            raise RequestError("--path dump needs the folder of the dumps", todo="pass --from-dir DIR")
        return stage_dumps(context, from_dir, model=model, dry_run=dry_run)
    if model is None:
        raise RequestError("no model given", todo="name one: fib define kimi-k2")
    with hold(workspace_lock(context), purpose="an onboarding"):
        context.sweep()
        standing = refresh_manifest(context, model, options)
        return define_kernels(context, standing, skip_existing=skip_existing, dry_run=dry_run)
