"""From the kernels of a manifest to candidates for the gate: canonical Definitions, tags, FlashInfer's own names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fib_tools.gate.gate import Candidate
from fib_tools.gate.strict import find_shape_faults
from fib_tools.gate.templates import instantiate
from fib_tools.host.sandbox import Sandbox
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import Manifest, ManifestKernel
from fib_tools.model.tags import Tag, merge_tags
from fib_tools.op_types.registry import get_kernel_type

__all__ = ["KernelCandidate", "build_candidates", "list_tags"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelCandidate:
    """A kernel of the manifest on its way through the gate."""

    kernel: ManifestKernel
    candidate: Candidate
    fi_name: str | None
    remarks: tuple[str, ...]
    """Where FlashInfer's template contradicts the kernel."""


def build_candidates(
    manifest: Manifest, kernels: Sequence[ManifestKernel], *, sandbox: Sandbox
) -> list[KernelCandidate]:
    """Build the Definitions, with FlashInfer's templates instantiated for the same sizes as a second witness."""
    built = [get_kernel_type(kernel.kernel).build(kernel.parameters) for kernel in kernels]
    calls = [get_kernel_type(kernel.kernel).find_template_call(kernel.parameters) for kernel in kernels]
    wanted = [call for call in calls if call is not None]
    results = iter(instantiate(wanted, sandbox=sandbox) if wanted else ())
    candidates: list[KernelCandidate] = []
    for kernel, definition, call in zip(kernels, built, calls, strict=True):
        fi_name: str | None = None
        remarks: tuple[str, ...] = ()
        if call is not None:
            result = next(results)
            faults = (
                (result.reason,) if result.reason else find_shape_faults(call, result, expected=definition.const_axes)
            )
            fi_name = None if faults else result.fi_name
            remarks = tuple(f"FlashInfer's template for {call.fi_api}: {fault}" for fault in faults)
        candidates.append(_candidate(manifest, kernel, (definition, fi_name), remarks))
    return candidates


def _candidate(
    manifest: Manifest, kernel: ManifestKernel, built: tuple[Definition, str | None], remarks: tuple[str, ...]
) -> KernelCandidate:
    definition, fi_name = built
    kernel_type = get_kernel_type(kernel.kernel)
    tags = list_tags(manifest, kernel, fi_name)
    tagged = definition.model_copy(update={"tags": merge_tags(definition.tags, tags)})
    parameters = kernel_type.parameters.model_validate(kernel.parameters)
    qualifier = parameters.qualifier() or parameters.plain_qualifier()
    return KernelCandidate(
        kernel=kernel,
        candidate=Candidate(definition=tagged, qualifier=qualifier),
        fi_name=fi_name,
        remarks=remarks,
    )


def list_tags(manifest: Manifest, kernel: ManifestKernel, fi_name: str | None) -> list[str]:
    """List what a model's manifest says of a kernel, as the tags of its Definition."""
    single = {"fi_api": kernel.fi_api, "fi_name": fi_name, "quantization": kernel.quantization, "model": manifest.model}
    tags = [Tag(key=key, value=value) for key, value in single.items() if value]
    tags += [Tag(key="stage", value=stage) for stage in kernel.stages]
    tags += [Tag(key="tp", value=str(size)) for size in kernel.tp]
    tags += [Tag(key="ep", value=str(size)) for size in kernel.ep]
    return [*(str(tag) for tag in tags), "status:unverified"]
