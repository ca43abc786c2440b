"""Coverage: per model and way of serving, what the dataset has of each kernel, as a document that people share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fib_tools.errors import FibError, RequestError
from fib_tools.host.files import read_limited, write_atomically
from fib_tools.host.locks import hold
from fib_tools.model.base import Model
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.discover import SINCE, DiscoverResult, discover_models
from fib_tools.phases.inventory import workspace_lock
from fib_tools.phases.manifests import list_manifests, manifest_model
from fib_tools.publish.coverage_document import (
    CoveredModel,
    Discovered,
    DiscoveredModel,
    WrongName,
    list_hand_written,
    list_parts,
    update_document,
)

__all__ = ["CoverageFailure", "CoverageResult", "track_coverage"]

_DOCUMENT = "model_coverage.md"
_DOCUMENT_BYTES = 16 << 20
_SHOWN = 40


class CoverageFailure(Model):
    """A model that could not be read."""

    model: str
    reason: str


class CoverageResult(Result):
    """How far models are covered."""

    rows = "models"

    document: str
    """Where it was written, or would be."""
    changed: bool
    dry_run: bool = False
    """Nothing was written."""
    models: tuple[CoveredModel, ...]
    wrong: tuple[WrongName, ...] = ()
    """Names that were written by hand and contradict the model's config."""
    failures: tuple[CoverageFailure, ...] = ()
    discovered: Discovered | None = None
    """New models, if they were asked for."""

    @property
    def has_errors(self) -> bool:
        """A model that could not be read and a wrong name are errors."""
        return bool(self.failures or self.wrong)

    def summary(self) -> Summary:
        """Show the models, then what is wrong."""
        columns = ("model", "kernels", "with Workloads", "Definition only", "missing", "unmapped")
        rows = tuple(_row(model) for model in self.models[:_SHOWN])
        tables = (Table(title="coverage", columns=columns, rows=rows),) if rows else ()
        more = len(self.models) - _SHOWN
        lines = [f"... and {more} more"] if more > 0 else []
        if self.discovered is not None:
            heads = ("model", "from", "evidence", "onboarded")
            found = ((m.model, m.source, m.evidence, "yes" if m.onboarded else "no") for m in self.discovered.models)
            tables = (*tables, Table(title="new models", columns=heads, rows=tuple(found)))
            lines += self.discovered.basis
        lines += [f"wrong: {item.model}, line {item.line}: {item.name}: {item.reason}" for item in self.wrong]
        lines += [f"failed: {item.model}: {item.reason}" for item in self.failures]
        written = "would be written" if self.dry_run else "written"
        said = written if self.changed else "unchanged"
        return Summary(tables=tables, lines=(*lines, f"{self.document}: {said}"))


def _row(model: CoveredModel) -> tuple[str, ...]:
    counts = model.count()
    numbers = (sum(counts.values()), counts["workloads"], counts["definition"], counts["missing"])
    return model.title, *map(str, numbers), str(len(model.unmapped))


def track_coverage(
    context: Context,
    models: Annotated[
        tuple[str, ...] | None,
        Field(description="Names, repositories or folders with config.json; the onboarded models if left out."),
    ] = None,
    *,
    document: Annotated[
        Path | None,
        Field(description="The document to bring up to date; model_coverage.md in the workspace if left out."),
    ] = None,
    hardware: Annotated[
        str | None, Field(description="Only the cookbook's configurations of this GPU, such as H200.")
    ] = None,
    discover: Annotated[
        bool,
        Field(
            description="List new models too: of SGLang's history, the cookbook, and online the Hub's trending list."
        ),
    ] = False,
    since: Annotated[
        str, Field(description="How far back --discover looks in the clones' history: 30d, 6w, 2m.", pattern=SINCE)
    ] = "30d",
    refresh_status: Annotated[
        bool,
        Field(
            description="Also the models that the document has already; and onboarded models take the statuses of their "
            "kernels by the FlashInfer, SGLang and dataset of today into their manifests."
        ),
    ] = False,
    dry_run: Annotated[bool, Field(description="Say what would be written; nothing is.")] = False,
) -> CoverageResult:
    """Track how far models are covered by the dataset, in a document whose hand-written parts stay as they are.

    Every kernel of a model is listed, for every way of serving it: with Workloads, with a Definition alone, or missing;
    and what no kernel type covers, with the reason. Names that were written by hand are held against the model's config.
    Exit status 1: a model could not be read, or a name is wrong.
    """
    path = context.check_readable(document) if document else context.workspace.root / _DOCUMENT
    if not path.parent.is_dir() and path.parent != context.workspace.root:
        raise RequestError("no such folder", where=str(path.parent), todo="make it, or pass another --document")
    text = read_limited(path, _DOCUMENT_BYTES).decode("utf-8", errors="replace") if path.exists() else ""
    onboarded = [manifest_model(name) for name in list_manifests(context.workspace)]
    wanted = models or tuple(dict.fromkeys([*onboarded, *(list_parts(text) if refresh_status else ())]))
    if not wanted and not discover:
        raise RequestError("no model is onboarded here", todo="name models: fib coverage kimi-k2 llama-3.1-8b")
    with _hold(context, is_needed=refresh_status and not dry_run):
        found = list(_cover_all(context, wanted, hardware, text, keep=refresh_status and not dry_run))
    covered = tuple(model for model, _ in found if isinstance(model, CoveredModel))
    news = _describe_news(discover_models(context, since=since, hardware=hardware, trending=True)) if discover else None
    updated = update_document(text, covered, news)
    changed = updated != text
    if changed and not dry_run:
        context.workspace.create()
        write_atomically(path, updated.encode())
    return CoverageResult(
        document=str(path),
        changed=changed,
        dry_run=dry_run,
        models=covered,
        wrong=tuple(name for _, wrong in found for name in wrong),
        failures=tuple(model for model, _ in found if isinstance(model, CoverageFailure)),
        discovered=news,
    )


@contextmanager
def _hold(context: Context, *, is_needed: bool) -> Iterator[None]:
    """Hold the workspace while manifests are written."""
    if not is_needed:
        yield
        return
    context.workspace.create()
    with hold(workspace_lock(context), purpose="an onboarding"):
        yield


def _cover_all(
    context: Context, models: tuple[str, ...], hardware: str | None, text: str, *, keep: bool
) -> Iterator[tuple[CoveredModel | CoverageFailure, list[WrongName]]]:
    # it loads a hundred classes, which `fib --help` can do without
    from fib_tools.phases.coverage_models import cover_model

    standing = context.dataset.load_definitions()[0] if context.dataset.root.is_dir() else {}
    lines = list(list_hand_written(text))
    for done, name in enumerate(models):
        context.progress(f"reading {name}", done, len(models))
        try:
            yield cover_model(context, name, hardware, standing, lines, keep=keep)
        except FibError as error:
            if len(models) == 1:
                raise
            yield CoverageFailure(model=name, reason=str(error)), []


def _describe_news(found: DiscoverResult) -> Discovered:
    fields = ("model", "source", "evidence", "config_bundled", "onboarded")
    models = (DiscoveredModel(**{name: getattr(entry, name) for name in fields}) for entry in found.discoveries)
    return Discovered(models=tuple(models), basis=found.basis)
