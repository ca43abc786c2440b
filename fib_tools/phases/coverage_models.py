"""How far one model is covered: from what the sources say of it and what the dataset has, way of serving by way."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.errors import ParallelismError, UnknownModelError
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import Manifest, ManifestKernel, Phase1Status
from fib_tools.op_types.registry import list_kernel_types
from fib_tools.phases.classify import build_manifest, find_kernel
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import keep_survey
from fib_tools.phases.manifests import find_manifest
from fib_tools.phases.request import DEFAULTS, ModelOptions
from fib_tools.phases.survey import Survey, survey_model
from fib_tools.publish.coverage_document import (
    CoverageStatus,
    CoveredKernel,
    CoveredModel,
    CoveredWay,
    WrongName,
    find_stem,
    find_wrong_names,
    list_names,
)

__all__ = ["cover_model", "describe_coverage"]

_TP_SIZES = (1, 2, 4, 8, 16, 32)
_PAGE_SIZES = (1, 16, 32, 64)
"""With these and those of the cookbook together, a name that does not come up contradicts the config."""
_SOURCES = ("flashinfer", "sglang")


def cover_model(
    context: Context,
    name: str,
    hardware: str | None,
    standing: dict[str, Definition],
    lines: Sequence[tuple[int, str, str]],
    *,
    keep: bool = False,
) -> tuple[CoveredModel, list[WrongName]]:
    """Cover a model, and hold the hand-written lines about it against its config.

    With `keep`, the manifest of an onboarded model takes over the statuses; the caller then holds the workspace's lock.

    Raises:
        FibError: the model cannot be read.
    """
    try:
        survey = survey_model(context, name, ModelOptions(hardware=hardware))
    except UnknownModelError:
        found = find_manifest(context.workspace, name)
        if found is None:
            raise
        return describe_coverage(context, found[1], standing), []  # it was onboarded from a config that is not here
    manifest = build_manifest(survey, standing)
    if keep and find_manifest(context.workspace, manifest.model):
        keep_survey(context, survey, DEFAULTS)
    model = _describe(context, manifest, standing, _list_ways(survey, manifest))
    own = [(number, line) for number, heading, line in lines if list_names(line) and _is_about(heading, survey)]
    if not own:
        return model, []
    possible = {kernel.name for kernel in model.kernels} | set(_list_possible(context, name, standing))
    return model, list(find_wrong_names(model.model, own, possible=possible, stems=_list_stems(standing, possible)))


def describe_coverage(context: Context, manifest: Manifest, standing: Collection[str]) -> CoveredModel:
    """Describe how far the kernels of a manifest are covered by the dataset, whose Definitions are `standing`."""
    return _describe(context, manifest, standing, _list_tp_sizes(manifest))


def _describe(
    context: Context, manifest: Manifest, standing: Collection[str], ways: tuple[CoveredWay, ...]
) -> CoveredModel:
    kernels = (_describe_kernel(context, kernel, standing) for kernel in manifest.kernels)
    unmapped = [(item.subject, item.reason) for item in manifest.refused]
    unmapped += [(f"{item.operation} in {item.module}", item.detail) for item in manifest.unexplained]
    return CoveredModel(
        model=manifest.model,
        title=manifest.repo_id or manifest.model,
        serving=manifest.serving,
        sources=tuple(f"{name} {manifest.sources[name].version}" for name in _SOURCES if name in manifest.sources),
        kernels=tuple(sorted(kernels, key=lambda kernel: (kernel.op_type, kernel.name))),
        ways=ways,
        unmapped=tuple(unmapped),
    )


def _describe_kernel(context: Context, kernel: ManifestKernel, standing: Collection[str]) -> CoveredKernel:
    name = kernel.definition or kernel.name
    has_definition = kernel.phase1_status is Phase1Status.EXISTING or name in standing
    workloads = len(context.dataset.load_workloads(kernel.op_type, name)) if has_definition else 0
    status: CoverageStatus = "workloads" if workloads else "definition" if has_definition else "missing"
    return CoveredKernel(
        name=name,
        op_type=kernel.op_type,
        tp=kernel.tp,
        ep=kernel.ep,
        page_sizes=kernel.page_sizes,
        status=status,
        workloads=workloads,
        flashinfer="template" if kernel.fi_trace_template else kernel.fi_status.value,
        sglang=kernel.sgl_status.value,
    )


def _list_ways(survey: Survey, manifest: Manifest) -> tuple[CoveredWay, ...]:
    """List the ways of serving; those that differ in the hardware alone, and need the same kernels, are one."""
    inventory = survey.inventory
    lines = [find_kernel(manifest, need) for need in inventory.needs]
    hardware: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for point, needs in zip(inventory.points, inventory.needs_by_point, strict=True):
        kernels = (line for line in (lines[index] for index in needs) if line is not None)
        names = tuple(kernel.definition or kernel.name for kernel in kernels)
        hardware.setdefault((_spell(point), names), []).append(point.hardware or "any GPU")
    return tuple(
        CoveredWay(title=f"{way} on {', '.join(dict.fromkeys(gpus))}", kernels=names)
        for (way, names), gpus in hardware.items()
    )


def _list_tp_sizes(manifest: Manifest) -> tuple[CoveredWay, ...]:
    """List the TP sizes, which is all that a manifest says of its kernels' ways of serving."""
    names = {kernel.definition or kernel.name: kernel.tp for kernel in manifest.kernels}
    sizes = sorted({tp for own in names.values() for tp in own})
    return tuple(
        CoveredWay(title=f"tp{tp}", kernels=tuple(name for name, own in names.items() if tp in own)) for tp in sizes
    )


def _spell(point: ServingPoint) -> str:
    """Say all of a way of serving that its kernels can depend on."""
    words = [point.describe(), point.quantization or ""]
    words.append(f"{point.kv_cache_dtype} KV cache" if point.kv_cache_dtype else "")
    words.append(f"page size {point.page_size}" if point.page_size else "")
    words.append(f"{point.attention_backend} attention" if point.attention_backend else "")
    words.append(f"{point.draft_tokens} draft tokens" if point.draft_tokens else "")
    return ", ".join(word for word in words if word)


def _is_about(heading: str, survey: Survey) -> bool:
    """Tell whether a heading names a model: its repository, its name in it, or its slug, whatever stands between words."""
    names = {survey.config.slug, survey.config.repo_id or "", (survey.config.repo_id or "").rpartition("/")[2]}
    return _plain(heading) in {_plain(name) for name in names if name}


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _list_possible(context: Context, name: str, standing: dict[str, Definition]) -> Iterable[str]:
    """List the names of a model's kernels for every TP and page size that can be."""
    for tp in _TP_SIZES:
        try:
            survey = survey_model(context, name, ModelOptions(tp_list=(tp,), page_sizes=_PAGE_SIZES))
        except ParallelismError:
            continue
        yield from (kernel.name for kernel in build_manifest(survey, standing).kernels)


def _list_stems(standing: Iterable[str], possible: Iterable[str]) -> set[str]:
    """List the stems of all names that there are: of the dataset, of the model, and of every kernel type."""
    return {find_stem(name) for name in (*standing, *possible)} | {kernel.id for kernel in list_kernel_types()}
