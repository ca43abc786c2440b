"""From the kernels a model needs to the lines of its manifest: canonical name, statuses, witnesses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.errors import FibError
from fib_tools.gate.identity import Signature, build_index, signature
from fib_tools.model.definition import Definition
from fib_tools.model.kernel import KernelNeed
from fib_tools.model.manifest import FiStatus, Manifest, ManifestKernel, Phase1Status, Refusal, SglStatus
from fib_tools.op_types.registry import find_kernel_type
from fib_tools.phases.survey import Survey
from fib_tools.sources.flashinfer import TracedApis
from fib_tools.sources.sglang import SglangFacts

__all__ = ["build_manifest", "find_kernel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What a need is classified against."""

    index: Mapping[Signature, str]
    traced: TracedApis
    sglang: SglangFacts


def build_manifest(
    survey: Survey, standing: Mapping[str, Definition], op_types: Collection[str] | None = None
) -> Manifest:
    """Draw up a model's manifest; `standing` holds the dataset's Definitions by name."""
    known = _Known(index=build_index(standing.values()), traced=survey.traced, sglang=survey.sglang)
    inventory = survey.inventory
    kernels: list[ManifestKernel] = []
    refused = [Refusal(subject=refusal.point.describe(), reason=refusal.reason) for refusal in inventory.refused]
    for need in inventory.needs:
        try:
            kernel = _classify(need, known)
        except (FibError, ValueError) as error:
            refused.append(Refusal(subject=f"{need.kernel} {dict(need.parameters)}", reason=str(error)))
            continue
        if op_types is None or kernel.op_type in op_types:
            kernels.append(kernel)
    return Manifest(
        model=survey.config.slug,
        repo_id=survey.config.repo_id,
        architecture=inventory.architecture,
        config_sha256=survey.config.sha256,
        sources=survey.versions,
        serving=_describe_points(inventory.points),
        kernels=tuple(kernels),
        refused=tuple(refused),
        disagreements=inventory.disagreements,
        unexplained=inventory.unexplained,
        notes=inventory.notes,
    )


def find_kernel(manifest: Manifest, need: KernelNeed) -> ManifestKernel | None:
    """Find the line of a manifest that a need has become; None for one that was refused."""
    same = (kernel for kernel in manifest.kernels if kernel.kernel == need.kernel)
    return next((kernel for kernel in same if kernel.parameters == need.parameters), None)


def _describe_points(points: Iterable[ServingPoint]) -> tuple[str, ...]:
    """Say each way of serving once, with the GPUs it is for: `tp8 ep4 on H200, B200 (source)`."""
    hardware: dict[tuple[str, str], list[str]] = {}
    for point in points:
        hardware.setdefault((point.describe(), point.source), []).append(point.hardware or "any GPU")
    return tuple(f"{way} on {', '.join(dict.fromkeys(gpus))} ({source})" for (way, source), gpus in hardware.items())


def _classify(need: KernelNeed, known: _Known) -> ManifestKernel:
    kernel_type = find_kernel_type(need.kernel)
    if kernel_type is None:
        raise FibError(f"no op_type describes the kernel {need.kernel!r}", todo="add it to fib_tools/op_types")
    definition = kernel_type.build(need.parameters)
    existing = known.index.get(signature(definition))
    fi_api = kernel_type.find_fi_api(need.parameters)
    fi_status = FiStatus.SUPPORTED if fi_api else FiStatus.MISSING
    sites = known.sglang.find_call_sites(fi_api) if fi_api else ()
    return ManifestKernel(
        name=definition.name,
        op_type=definition.op_type,
        kernel=need.kernel,
        parameters=need.parameters,
        module=need.module,
        layers=need.layers,
        tp=need.tp,
        ep=need.ep,
        page_sizes=need.page_sizes,
        stages=need.stages,
        quantization=need.quantization,
        phase1_status=Phase1Status.EXISTING if existing else Phase1Status.NEW,
        fi_status=fi_status,
        fi_api=fi_api,
        fi_trace_template=fi_api is not None and known.traced.find(fi_api) is not None,
        sgl_status=_sgl_status(fi_status, len(sites)),
        sgl_call_sites=tuple(sites[:5]),
        definition=existing,
        witnesses=need.witnesses,
    )


def _sgl_status(fi_status: FiStatus, call_sites: int) -> SglStatus:
    if fi_status is FiStatus.MISSING:
        return SglStatus.NOT_APPLICABLE
    return SglStatus.INTEGRATED if call_sites else SglStatus.MISSING
