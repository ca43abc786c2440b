"""The kernel inventory: everything that a model calls, for each way it is served, with the witnesses of each kernel."""

from __future__ import annotations

from collections.abc import Sequence

from fib_tools.architecture.crosscheck import compare_facts
from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.inventory_attention import need_attention
from fib_tools.architecture.inventory_compressed import need_compressed
from fib_tools.architecture.inventory_coverage import (
    find_unexplained_calls,
    list_contradictions,
    list_quantization_disputes,
    list_unexplained,
)
from fib_tools.architecture.inventory_ends import need_ends, need_hidden_norms, need_mtp, need_sampling
from fib_tools.architecture.inventory_evidence import Evidence
from fib_tools.architecture.inventory_mla import need_mla
from fib_tools.architecture.inventory_moe import need_feed_forward
from fib_tools.architecture.inventory_needs import NeedBook, Site
from fib_tools.architecture.inventory_pages import choose_page_sizes
from fib_tools.architecture.inventory_quantization import override_quantization
from fib_tools.architecture.inventory_recurrent import need_recurrent
from fib_tools.architecture.inventory_schema import Inventory, Refusal
from fib_tools.architecture.inventory_streams import need_hyper_connections
from fib_tools.architecture.inventory_trace import need_traced_call
from fib_tools.architecture.parallelism import ServingPoint, get_serving_point
from fib_tools.architecture.structure_schema import NotTraceable, OpCall, Structure
from fib_tools.errors import ParallelismError
from fib_tools.host.paths import slugify
from fib_tools.sources.cookbook import Cookbook, default_serving_config, find_serving_configs
from fib_tools.sources.flashinfer import TracedApis
from fib_tools.sources.registry import find_model
from fib_tools.sources.sglang import SglangFacts

__all__ = ["Inventory", "Refusal", "build_inventory", "list_serving_points"]


def list_serving_points(
    name: str, *, hardware: str | None = None, cookbook: Cookbook | None = None
) -> tuple[ServingPoint, ...]:
    """List how a model is served on NVIDIA hardware; one GPU where the cookbook (None: the bundled one) has no entry."""
    found = find_serving_configs(name, hardware=hardware, cookbook=cookbook)
    configs = tuple(config for config in found if config.kind == "llm")
    if not configs:
        return (get_serving_point(default_serving_config(name)).model_copy(update={"hardware": hardware}),)
    points = (get_serving_point(config) for config in configs)
    return tuple({point.model_copy(update={"source": ""}): point for point in points}.values())


def build_inventory(
    facts: ModelFacts,
    points: Sequence[ServingPoint],
    *,
    structure: Structure | NotTraceable | None = None,
    sglang: SglangFacts | None = None,
    traced: TracedApis | None = None,
    page_sizes: Sequence[int] = (),
) -> Inventory:
    """Derive every kernel of a model for the serving points, and say what is refused, disputed or unexplained.

    Raises:
        ParallelismError: when a point that the user asked for cannot be served; other refusals are listed.
    """
    seen = structure if isinstance(structure, Structure) else None
    evidence = Evidence.gather(facts, structure=seen, sglang=sglang, traced=traced)
    book = NeedBook()
    refused: list[Refusal] = []
    for point in points:
        try:
            _serve(evidence, point, tuple(page_sizes), book)
        except ParallelismError as error:
            if point.requested:
                raise
            refused.append(Refusal(point=point, reason=str(error)))
    return _make_inventory(evidence, structure, points, book=book, refused=tuple(refused))


def _serve(evidence: Evidence, point: ServingPoint, page_sizes: tuple[int, ...], book: NeedBook) -> None:
    """Add the kernels of one point, all or none."""
    trial = NeedBook()
    _need_everything(_make_site(evidence, point, page_sizes, trial))
    _need_everything(_make_site(evidence, point, page_sizes, book))


def _make_site(evidence: Evidence, point: ServingPoint, page_sizes: tuple[int, ...], book: NeedBook) -> Site:
    facts = evidence.facts
    groups = evidence.structure.layer_groups if evidence.structure else ()
    return Site(
        facts=facts,
        point=point,
        quantization=override_quantization(facts.quantization, point),
        page_sizes=choose_page_sizes(facts, point, page_sizes).reasons,
        evidence=evidence,
        book=book,
        prefix=groups[0].path if groups else "model.layers",
    )


def _need_everything(site: Site) -> None:
    for key, attention in site.facts.attentions.items():
        if attention.mla is not None:
            need_mla(site, key, attention, attention.mla)
        elif attention.output_lora is not None:
            need_compressed(site, key, attention, attention.output_lora)
        else:
            need_attention(site, key, attention)
    for key, linear in site.facts.linears.items():
        need_recurrent(site, key, linear)
    need_hyper_connections(site)
    need_feed_forward(site)
    need_hidden_norms(site)
    need_ends(site)
    need_sampling(site)
    need_mtp(site)
    for call in _find_open_calls(site):
        need_traced_call(site, call)


def _find_open_calls(site: Site) -> tuple[OpCall, ...]:
    structure = site.evidence.structure
    if site.facts.is_known or structure is None:
        return ()
    return find_unexplained_calls(site.book, structure)


def _make_inventory(
    evidence: Evidence,
    structure: Structure | NotTraceable | None,
    points: Sequence[ServingPoint],
    *,
    book: NeedBook,
    refused: tuple[Refusal, ...],
) -> Inventory:
    facts = evidence.facts
    entry = find_model(facts.name)
    unexplained = list(book.unexplained)
    disagreements = [*list_contradictions(book, evidence), *list_quantization_disputes(facts, points)]
    if evidence.structure is not None:
        calls = find_unexplained_calls(book, evidence.structure) if book.entries else ()
        unexplained += list_unexplained(calls, evidence.structure, book)
        disagreements += compare_facts(facts, evidence.structure)
    served = tuple(point for point in points if all(point != refusal.point for refusal in refused))
    return Inventory(
        model=entry.slug if entry else slugify(facts.name.rpartition("/")[2]),
        repo_id=entry.repo_id if entry else (facts.name if "/" in facts.name else None),
        architecture=facts.architecture,
        is_known=facts.is_known,
        points=served,
        needs=book.get_needs(),
        needs_by_point=tuple(book.find_needs(point) for point in served),
        refused=refused,
        disagreements=tuple(dict.fromkeys(disagreements)),
        unexplained=tuple(dict.fromkeys(unexplained)),
        notes=tuple(dict.fromkeys((*_remark(evidence, structure), *facts.notes, *book.notes))),
    )


def _remark(evidence: Evidence, structure: Structure | NotTraceable | None) -> tuple[str, ...]:
    facts, sglang = evidence.facts, evidence.sglang
    remarks: list[str] = []
    if sglang is not None:
        line = sglang.find_model_implementation([facts.architecture])
        served = f"serves {facts.architecture} at {line}" if line else f"does not serve {facts.architecture}"
        remarks.append(f"SGLang {sglang.version} {served}")
    if isinstance(structure, NotTraceable):
        remarks.append(f"not traced, so the config alone speaks: {structure.reason}")
    if not facts.is_known:
        basis = "the trace" if isinstance(structure, Structure) else "general rules, with nothing to confirm them"
        remarks.append(f"no table describes {facts.model_type!r}: its kernels follow from {basis}")
    remarks += [f"out of scope: {part}" for part in facts.out_of_scope]
    return tuple(remarks)
