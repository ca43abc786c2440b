"""Holding the trace against the needs: what it shows and no need explains, and what it should show and does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.inventory_evidence import Claim, Evidence
from fib_tools.architecture.inventory_needs import NeedBook
from fib_tools.architecture.inventory_quantization import is_quantized, is_same_family
from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.architecture.structure_schema import OpCall, OpKind, Structure
from fib_tools.model.kernel import Disagreement, Unexplained, Witness, WitnessSource

_LAYER_NUMBER = re.compile(r"\.\d+(?=\.|$)")

__all__ = ["find_unexplained_calls", "list_contradictions", "list_quantization_disputes", "list_unexplained"]


def find_unexplained_calls(book: NeedBook, structure: Structure) -> tuple[OpCall, ...]:
    """Find the traced calls that no need accounts for, each module once."""
    found: dict[tuple[OpKind, str], OpCall] = {}
    for op in structure.ops:
        if not _is_covered(op.module, book) and not any(sight.matches(op) for sight in book.sights):
            found.setdefault((op.kind, op.module), op)
    return tuple(found.values())


def _is_covered(module: str, book: NeedBook) -> bool:
    return any(f"{module}.".startswith(f"{covered}.") for covered in book.covered)


def list_unexplained(calls: tuple[OpCall, ...], structure: Structure, book: NeedBook) -> Iterator[Unexplained]:
    """Spell unexplained calls, with what the trace itself could not place."""
    for op in calls:
        detail = ", ".join(f"{name}={value}" for name, value in op.attributes.items())
        yield Unexplained(operation=op.kind.value, module=op.module or "model", detail=detail)
    by_place: dict[tuple[str, str], Unexplained] = {}
    for item in structure.unexplained:
        module = _LAYER_NUMBER.sub(".*", item.module)
        if not _is_covered(module, book):
            by_place.setdefault((item.operation, module), item.model_copy(update={"module": module}))
    yield from by_place.values()


def list_contradictions(book: NeedBook, evidence: Evidence) -> Iterator[Disagreement]:
    """Spell the claims of the config that the trace does not bear out."""
    choice = "the config's, since SGLang builds from it" if evidence.facts.is_known else "the trace's"
    by_call: dict[tuple[str, str], list[str]] = {}
    for (kernel, module), claim in book.contradicted.items():
        by_call.setdefault((module, _spell(claim)), []).append(kernel)
    for (module, missing), kernels in by_call.items():
        claim = book.contradicted[kernels[0], module]
        said = [evidence.facts.provenance[key] for key in claim.facts if key in evidence.facts.provenance]
        config = ", ".join(said) or f"architectures={evidence.facts.architecture}"
        yield Disagreement(
            subject=f"{', '.join(kernels)} at {module}",
            statements=(
                Witness(source=WitnessSource.CONFIG, detail=config),
                Witness(source=WitnessSource.TRACE, detail=f"no call like {missing}"),
            ),
            chosen=choice,
        )


def list_quantization_disputes(facts: ModelFacts, points: Sequence[ServingPoint]) -> Iterator[Disagreement]:
    """Spell serving points that name another quantisation than the checkpoint has."""
    quantization = facts.quantization
    stored = (quantization.expert_scheme or quantization.scheme).value
    for point in points:
        if is_quantized(quantization) and not point.requested and not is_same_family(quantization, point):
            yield Disagreement(
                subject="quantization",
                statements=(
                    Witness(source=WitnessSource.CONFIG, detail=f"{quantization.witness.value}: {stored}"),
                    Witness(source=WitnessSource.COOKBOOK, detail=f"{point.quantization}: {point.source}"),
                ),
                chosen=f"{stored}, since the weights are stored so",
            )


def _spell(claim: Claim) -> str:
    shapes = (
        f"{sight.kind.value}({', '.join(f'{name}={value}' for name, value in sight.attributes)})"
        for sight in claim.sights
    )
    return " or ".join(shapes)
