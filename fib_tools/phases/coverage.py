"""Coverage: per model and way of serving, what the dataset has of each kernel, as a document that people share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fib_tools.errors import FibError, ParallelismError, RequestError, UnknownModelError
from fib_tools.host.files import read_limited, write_atomically
from fib_tools.model.base import Model
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import Manifest, Phase1Status
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import find_manifest, list_manifests, manifest_model
from fib_tools.phases.request import ModelOptions
from fib_tools.publish.coverage_document import (
    CoverageStatus,
    CoveredKernel,
    CoveredModel,
    WrongName,
    find_stem,
    find_wrong_names,
    list_hand_written,
    update_document,
)

if TYPE_CHECKING:
    from fib_tools.phases.survey import Survey

__all__ = ["CoverageFailure", "CoverageResult", "describe_coverage", "track_coverage"]

_DOCUMENT = "model_coverage.md"
_DOCUMENT_BYTES = 16 << 20
_TP_SIZES = (1, 2, 4, 8, 16, 32)
_PAGE_SIZES = (1, 16, 32, 64)
"""With these and those of the cookbook together, a name that does not come up contradicts the config."""
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
    models: tuple[CoveredModel, ...]
    wrong: tuple[WrongName, ...] = ()
    """Names that were written by hand and contradict the model's config."""
    failures: tuple[CoverageFailure, ...] = ()

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
        lines += [f"wrong: {item.model}, line {item.line}: {item.name}: {item.reason}" for item in self.wrong]
        lines += [f"failed: {item.model}: {item.reason}" for item in self.failures]
        said = "written" if self.changed else "unchanged"
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
    dry_run: Annotated[bool, Field(description="Say what would be written; nothing is.")] = False,
) -> CoverageResult:
    """Track how far models are covered by the dataset, in a document whose hand-written parts stay as they are.

    Every kernel of a model is listed, for every way of serving it: with Workloads, with a Definition alone, or missing;
    and what no kernel type covers, with the reason. Names that were written by hand are held against the model's config.
    Exit status 1: a model could not be read, or a name is wrong.
    """
    wanted = models or tuple(dict.fromkeys(manifest_model(name) for name in list_manifests(context.workspace)))
    if not wanted:
        raise RequestError("no model is onboarded here", todo="name models: fib coverage kimi-k2 llama-3.1-8b")
    path = context.check_readable(document) if document else context.workspace.root / _DOCUMENT
    text = read_limited(path, _DOCUMENT_BYTES).decode("utf-8", errors="replace") if path.exists() else ""
    standing = context.dataset.load_definitions()[0] if context.dataset.root.is_dir() else {}
    lines = list(list_hand_written(text))
    covered: list[CoveredModel] = []
    wrong: list[WrongName] = []
    failures: list[CoverageFailure] = []
    for done, name in enumerate(wanted):
        context.progress(f"reading {name}", done, len(wanted))
        try:
            model, found = _cover(context, name, hardware, standing, lines)
        except FibError as error:
            failures.append(CoverageFailure(model=name, reason=str(error)))
            continue
        covered.append(model)
        wrong += found
    updated = update_document(text, covered)
    changed = updated != text
    if changed and not dry_run:
        context.workspace.create()
        write_atomically(path, updated.encode())
    return CoverageResult(
        document=str(path), changed=changed, models=tuple(covered), wrong=tuple(wrong), failures=tuple(failures)
    )


def _cover(
    context: Context,
    name: str,
    hardware: str | None,
    standing: dict[str, Definition],
    lines: Sequence[tuple[int, str, str]],
) -> tuple[CoveredModel, list[WrongName]]:
    from fib_tools.phases.classify import build_manifest
    from fib_tools.phases.survey import survey_model

    try:
        survey = survey_model(context, name, ModelOptions(hardware=hardware))
    except UnknownModelError:
        found = find_manifest(context.workspace, name)
        if found is None:
            raise
        return describe_coverage(context, found[1], standing), []  # it was onboarded from a config that is not here
    model = describe_coverage(context, build_manifest(survey, standing), standing)
    own = [(number, line) for number, heading, line in lines if _is_about(heading, survey)]
    if not own:
        return model, []
    possible = {kernel.name for kernel in model.kernels} | set(_list_possible(context, name, standing))
    return model, list(find_wrong_names(model.model, own, possible=possible, stems=_list_stems(standing, possible)))


def describe_coverage(context: Context, manifest: Manifest, standing: Collection[str]) -> CoveredModel:
    """Describe how far the kernels of a manifest are covered by the dataset, whose Definitions are `standing`."""
    kernels = []
    for kernel in manifest.kernels:
        name = kernel.definition or kernel.name
        has_definition = kernel.phase1_status is Phase1Status.EXISTING or name in standing
        workloads = len(context.dataset.load_workloads(kernel.op_type, name)) if has_definition else 0
        status: CoverageStatus = "workloads" if workloads else "definition" if has_definition else "missing"
        kernels.append(
            CoveredKernel(
                name=name,
                op_type=kernel.op_type,
                tp=kernel.tp,
                ep=kernel.ep,
                page_sizes=kernel.page_sizes,
                status=status,
                workloads=workloads,
            )
        )
    unmapped = [(item.subject, item.reason) for item in manifest.refused]
    unmapped += [(f"{item.operation} in {item.module}", item.detail) for item in manifest.unexplained]
    return CoveredModel(
        model=manifest.model,
        title=manifest.repo_id or manifest.model,
        serving=manifest.serving,
        kernels=tuple(sorted(kernels, key=lambda kernel: (kernel.op_type, kernel.name))),
        unmapped=tuple(unmapped),
    )


def _is_about(heading: str, survey: Survey) -> bool:
    """Tell whether a heading names a model: its repository, its name in it, or its slug, whatever stands between words."""
    names = {survey.config.slug, survey.config.repo_id or "", (survey.config.repo_id or "").rpartition("/")[2]}
    return _plain(heading) in {_plain(name) for name in names if name}


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _list_possible(context: Context, name: str, standing: dict[str, Definition]) -> Iterable[str]:
    """List the names of a model's kernels for every TP and page size that can be."""
    from fib_tools.phases.classify import build_manifest
    from fib_tools.phases.survey import survey_model

    for tp in _TP_SIZES:
        try:
            survey = survey_model(context, name, ModelOptions(tp_list=(tp,), page_sizes=_PAGE_SIZES))
        except ParallelismError:
            continue
        yield from (kernel.name for kernel in build_manifest(survey, standing).kernels)


def _list_stems(standing: Iterable[str], possible: Iterable[str]) -> set[str]:
    """List the stems of all names that there are: of the dataset, of the model, and of every kernel type."""
    from fib_tools.op_types.registry import list_kernel_types

    return {find_stem(name) for name in (*standing, *possible)} | {kernel.id for kernel in list_kernel_types()}
