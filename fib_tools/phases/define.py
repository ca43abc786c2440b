"""Phase 2, define: Definitions through the gate into the dataset, from FlashInfer's templates or from dumps of an engine."""

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
    model: Annotated[str | None, Field(description="The model; not needed with --from-dir.")] = None,
    options: ModelOptions = DEFAULTS,
    *,
    path: Annotated[
        Literal["template", "dump"],
        Field(
            description="template: FlashInfer's templates, no GPU; dump: SGLang serves the model on a GPU with made-up "
            "weights, and FlashInfer's traces of it are taken, or those of --from-dir."
        ),
    ] = "template",
    from_dir: Annotated[
        Path | None, Field(description="Folder of raw dumps of FLASHINFER_TRACE_DUMP, for --path dump; needs no GPU.")
    ] = None,
    gpus: Annotated[
        int,
        Field(
            ge=1, le=64, description="GPUs for --path dump; with fewer than TP, the config is cut to one rank's share."
        ),
    ] = 1,
    weights: Annotated[
        str | None,
        Field(description="Real weights for --path dump, a folder or repository; made-up ones if left out."),
    ] = None,
    timeout: Annotated[
        float, Field(ge=10, le=86400, description="Seconds that one run of the engine may take.")
    ] = 1800,
    skip_existing: Annotated[
        bool, Field(description="Leave kernels alone that were defined before, and runs of the engine that were made.")
    ] = True,
    dry_run: Annotated[
        bool, Field(description="Say what would be defined or run; neither the dataset nor a GPU is touched.")
    ] = False,
) -> DefineResult:
    """Define a model's kernels, from templates or from dumps, and stage what passes the gate in the dataset.

    Every reference is executed in an isolated child before its Definition is staged.
    A dump of the engine is also held against the inventory: each kernel is confirmed, corrected, new, or not seen.
    """
    # the gate is heavy, and `fib --help` can do without it
    from fib_tools.phases.dumps import stage_dumps
    from fib_tools.phases.staging import define_kernels

    context.workspace.create()
    if path == "dump":
        if from_dir is not None:
            return stage_dumps(context, from_dir, model=model, dry_run=dry_run)
        if model is None:
            raise RequestError(
                "--path dump needs a model to serve, or the folder of dumps there are",
                todo="pass a model, or --from-dir DIR",
            )
        from fib_tools.phases.trace_dump import TraceRequest, dump_model

        request = TraceRequest(
            gpus=gpus, weights=weights, timeout=timeout, skip_existing=skip_existing, dry_run=dry_run
        )
        return dump_model(context, model, options, request)
    if model is None:
        raise RequestError("no model given", todo="name one: fib define kimi-k2")
    with hold(workspace_lock(context), purpose="an onboarding"):
        context.sweep()
        standing = refresh_manifest(context, model, options)
        return define_kernels(context, standing, skip_existing=skip_existing, dry_run=dry_run)
