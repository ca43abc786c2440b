"""From a survey to the documents about a model: architecture, implementation, and the Definition of each module."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fib_tools.architecture.facts_schema import AttentionFacts, ModelFacts
from fib_tools.architecture.modules import ModelModule, build_modules
from fib_tools.architecture.modules_traced import TracedModule, compare_layers, format_layers, place_traced_modules
from fib_tools.architecture.structure_schema import Structure
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import DefineStatus, Manifest, ManifestKernel
from fib_tools.phases.classify import build_manifest, find_kernel
from fib_tools.phases.manifests import kernel_key
from fib_tools.publish.model_pages import (
    AnalysedKernel,
    AnalysedModule,
    Analysis,
    Architecture,
    ConfigOrigin,
    Implementation,
    ImplementedModule,
    KernelCalls,
    ModuleInfo,
    Unmapped,
)
from fib_tools.publish.models_ts import EntryModule, ModelEntry

if TYPE_CHECKING:
    from fib_tools.phases.survey import Survey

__all__ = ["ModelDocuments", "build_documents"]


@dataclass(frozen=True, kw_only=True)
class ModelDocuments:
    """Everything that is written about a model."""

    config: dict[str, object]
    architecture: Architecture
    implementation: Implementation
    analysis: Analysis
    entry: ModelEntry


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """What the documents are drawn from."""

    survey: Survey
    manifest: Manifest
    """Drawn up against the dataset."""
    standing: Collection[str]
    """Names of the dataset's Definitions."""
    onboarded: Manifest | None
    """What phases have done for the model in this workspace."""
    modules: tuple[ModelModule, ...]
    traced: tuple[TracedModule, ...]
    commit: str | None


def build_documents(
    survey: Survey, standing: Mapping[str, Definition], *, onboarded: Manifest | None, commit: str | None
) -> ModelDocuments:
    """Draw up the documents of a model; `standing` holds the dataset's Definitions, which alone are linked to."""
    structure = survey.structure if isinstance(survey.structure, Structure) else None
    modules = build_modules(survey.facts, survey.inventory, structure)
    fused = {item.weight: item.parameter for item in survey.sglang.find_stacked(survey.facts.architecture)}
    sources = _Sources(
        survey=survey,
        manifest=build_manifest(survey, standing),
        standing=standing.keys(),
        onboarded=onboarded,
        modules=modules,
        traced=place_traced_modules(modules, structure, fused) if structure else (),
        commit=commit,
    )
    analysis = _analyse(sources)
    implementation = _describe_implementation(sources)
    return ModelDocuments(
        config=survey.config.config,
        architecture=_describe_architecture(sources),
        implementation=implementation,
        analysis=analysis,
        entry=_make_entry(survey, analysis, implementation),
    )


def _describe_config(survey: Survey) -> ConfigOrigin:
    config = survey.config
    return ConfigOrigin(
        repo_id=config.repo_id,
        revision=config.revision,
        origin=config.origin,
        location=config.location,
        sha256=config.sha256,
    )


def _describe_module(module: ModelModule) -> ModuleInfo:
    return ModuleInfo(
        key=module.key,
        path=module.path,
        parent=module.parent,
        type=module.type,
        count=module.count,
        layers=format_layers(module.layers),
    )


def _describe_architecture(sources: _Sources) -> Architecture:
    survey, structure = sources.survey, sources.survey.structure
    if isinstance(structure, Structure):
        traced_by = f"transformers {structure.transformers_version}, {structure.architecture}"
    else:
        traced_by = f"nobody: {structure.reason}"
    return Architecture(
        model=survey.config.slug,
        config=_describe_config(survey),
        architecture=survey.facts.architecture,
        facts=survey.facts,
        parameter_count=structure.parameter_count if isinstance(structure, Structure) else None,
        traced_by=traced_by,
        modules=tuple(map(_describe_module, sources.modules)),
        traced=sources.traced,
        disagreements=(*survey.inventory.disagreements, *compare_layers(sources.modules, sources.traced)),
        notes=survey.inventory.notes,
    )


def _describe_implementation(sources: _Sources) -> Implementation:
    survey, sglang = sources.survey, sources.survey.sglang
    architecture = survey.facts.architecture
    place = sglang.find_model_implementation([architecture])
    file, _, line = (place or "").rpartition(":")
    linears = sglang.find_linears(architecture) if place else ()
    built = [
        ImplementedModule(
            key=module.key,
            at=f"{linear.file}:{linear.line}",
            class_name=linear.class_name or architecture,
            attribute=linear.attribute,
            linear=linear.linear,
        )
        for module in sources.modules
        for linear in linears
        if linear.attribute == module.path.rpartition(".")[2]
        and linear.file == next(other.file for other in linears if other.attribute == linear.attribute)
    ]
    kernels = (
        KernelCalls(
            name=kernel.definition or kernel.name,
            fi_api=kernel.fi_api,
            sgl_status=kernel.sgl_status.value,
            call_sites=kernel.sgl_call_sites,
        )
        for kernel in sources.manifest.kernels
    )
    fused = sglang.find_stacked(architecture) if place else ()
    files = [*(item.file for item in linears), *(item.file for item in fused)]
    return Implementation(
        model=survey.config.slug,
        architecture=architecture,
        sglang=survey.versions["sglang"],
        commit=sources.commit,
        file=file or None,
        line=int(line) if line else None,
        class_name=architecture if place else None,
        files=tuple(dict.fromkeys(name for name in (file, *files) if name)),
        modules=tuple(built),
        fused=fused,
        kernels=tuple(kernels),
    )


def _analyse(sources: _Sources) -> Analysis:
    survey = sources.survey
    kernels = [find_kernel(sources.manifest, need) for need in survey.inventory.needs]
    modules = []
    for module in sources.modules:
        own = [_analyse_kernel(kernel, sources) for kernel in (kernels[index] for index in module.needs) if kernel]
        filled = [name for index in module.gaps if (name := _find_filling(_gap_name(sources, index), sources))]
        names = [kernel.definition for kernel in own if kernel.definition]
        modules.append(
            AnalysedModule(
                **_describe_module(module).model_dump(),
                definitions=tuple(dict.fromkeys([*names, *filled])),
                kernels=tuple(own),
            )
        )
    return Analysis(
        model=survey.config.slug,
        config=_describe_config(survey),
        sources=sources.manifest.sources,
        serving=sources.manifest.serving,
        modules=tuple(modules),
        unmapped=tuple(_list_unmapped(sources)),
    )


def _analyse_kernel(kernel: ManifestKernel, sources: _Sources) -> AnalysedKernel:
    return AnalysedKernel(
        name=kernel.name,
        op_type=kernel.op_type,
        definition=kernel.definition,
        reason="" if kernel.definition else _explain_missing(kernel, sources),
        tp=kernel.tp,
        ep=kernel.ep,
        page_sizes=kernel.page_sizes,
        stages=kernel.stages,
    )


def _explain_missing(kernel: ManifestKernel, sources: _Sources) -> str:
    """Say why the dataset has no Definition of a kernel, as the onboarding knows it."""
    known = sources.onboarded.kernels if sources.onboarded else ()
    found = next((item for item in known if kernel_key(item) == kernel_key(kernel)), None)
    if found is not None and found.define_status is DefineStatus.REFUSED:
        return f"refused by the gate: {found.define_reason}"
    return "not in the dataset"


def _gap_name(sources: _Sources, index: int) -> str:
    gap = sources.survey.inventory.unexplained[index]
    return f"{gap.operation} in {gap.module}"


def _find_filling(gap: str, sources: _Sources) -> str | None:
    """Find the Definition that a person or an LLM wrote for a gap."""
    written = sources.onboarded.manual if sources.onboarded else ()
    return next((item.name for item in written if item.fills == gap and item.name in sources.standing), None)


def _list_unmapped(sources: _Sources) -> Iterator[Unmapped]:
    inventory = sources.survey.inventory
    places = {index: module.key for module in sources.modules for index in module.gaps}
    for index, gap in enumerate(inventory.unexplained):
        if _find_filling(_gap_name(sources, index), sources) is None:
            reason = gap.detail or "no kernel type describes it"
            yield Unmapped(subject=_gap_name(sources, index), module=places.get(index), reason=reason)
    for refusal in sources.manifest.refused:
        yield Unmapped(subject=refusal.subject, reason=refusal.reason)
    for part in sources.survey.facts.out_of_scope:
        yield Unmapped(subject=part, reason="outside of the text backbone, which alone is covered")
    for traced in sources.traced:
        if traced.remark:
            yield Unmapped(subject=f"{traced.module} of transformers", reason=traced.remark)


def _make_entry(survey: Survey, analysis: Analysis, implementation: Implementation) -> ModelEntry:
    config = analysis.config
    name = (config.repo_id or analysis.model).rpartition("/")[2]
    revision = f"revision {config.revision}" if config.revision else f"config.json {config.sha256[:16]} (SHA-256)"
    version = f"{implementation.sglang.version}{f' at {implementation.commit}' if implementation.commit else ''}"
    served = f"{implementation.file}:{implementation.line}" if implementation.file else "does not serve it"
    return ModelEntry(
        id=analysis.model,
        name=name.replace("-", " ").replace("_", " "),
        description=f"{_sum_up(survey.facts)}.",
        modules=tuple(
            EntryModule(
                key=module.key,
                count=module.count,
                parent=module.parent,
                type=module.type,
                definitions=module.definitions,
            )
            for module in analysis.modules
        ),
        remarks=(
            f"{config.repo_id or analysis.model}, {revision}",
            f"{implementation.architecture}; SGLang {version}: {served}",
        ),
    )


def _sum_up(facts: ModelFacts) -> str:
    """Say in a line what kind of model it is."""
    attentions = [_name_attention(attention) for attention in facts.attentions.values()]
    linears = [f"{linear.kind.value.upper()} linear attention" for linear in facts.linears.values()]
    said = [f"{facts.num_layers} layers", f"hidden size {facts.hidden_size}", *dict.fromkeys([*attentions, *linears])]
    if facts.moe is not None:
        said.append(f"{facts.moe.num_experts} experts with {facts.moe.top_k} a token")
    stored = facts.quantization.expert_scheme or facts.quantization.scheme
    return ", ".join([*said, *([f"{stored.value} weights"] if stored.value != "none" else [])])


def _name_attention(attention: AttentionFacts) -> str:
    heads = f"{attention.num_heads} query and {attention.num_kv_heads} KV heads of {attention.head_dim}"
    if attention.mla is not None:
        kind = "sparse multi-head latent attention" if attention.indexer else "multi-head latent attention"
        return f"{kind} with {attention.num_heads} heads"
    return f"{attention.kind.value.replace('_', ' ')} attention with {heads}"
