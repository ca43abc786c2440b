"""Gathering needs: equal kernels of several modules, layers and serving points become one need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.inventory_evidence import Claim, Evidence, Sight
from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.architecture.quantization import QuantizationFacts
from fib_tools.model.kernel import KernelNeed, ParameterValue, Unexplained, Witness, WitnessSource
from fib_tools.op_types.registry import find_kernel_type

__all__ = ["NeedBook", "Site"]


@dataclass(kw_only=True, slots=True)
class _Entry:
    kernel: str
    parameters: dict[str, ParameterValue]
    places: dict[str, set[int]] = field(default_factory=dict)
    tp: set[int] = field(default_factory=set)
    ep: set[int] = field(default_factory=set)
    points: set[ServingPoint] = field(default_factory=set)
    stages: set[str] | None = field(default_factory=set)
    """None once a use had no stage: then there is no difference."""
    quantization: str | None = None
    witnesses: dict[Witness, None] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class NeedBook:
    """The needs of one inventory while they are gathered."""

    entries: dict[str, _Entry] = field(default_factory=dict)
    unexplained: dict[Unexplained, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    contradicted: dict[tuple[str, str], Claim] = field(default_factory=dict)
    """What the trace should show and does not, by kernel and module."""
    sights: set[Sight] = field(default_factory=set)
    """Everything that some need explains in the trace."""
    covered: set[str] = field(default_factory=set)
    """Modules that one need, or one named gap, accounts for as a whole."""

    def get_needs(self) -> tuple[KernelNeed, ...]:
        """Return the needs in order of kernel and parameters."""
        return tuple(_make_need(entry) for entry in self._sort_entries())

    def find_needs(self, point: ServingPoint) -> tuple[int, ...]:
        """Find the needs of one point: their places in `get_needs`."""
        return tuple(index for index, entry in enumerate(self._sort_entries()) if point in entry.points)

    def _sort_entries(self) -> list[_Entry]:
        return sorted(self.entries.values(), key=lambda entry: (entry.kernel, _sort_key(entry.parameters)))


def _sort_key(parameters: Mapping[str, ParameterValue]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, f"{value:020d}" if isinstance(value, int) else str(value)) for name, value in parameters.items()
    )


def _make_need(entry: _Entry) -> KernelNeed:
    page_size = entry.parameters.get("page_size")
    return KernelNeed(
        kernel=entry.kernel,
        parameters=entry.parameters,
        places={module: tuple(sorted(layers)) for module, layers in entry.places.items()},
        tp=tuple(sorted(entry.tp)),
        ep=tuple(sorted(entry.ep)),
        page_sizes=(page_size,) if isinstance(page_size, int) else (),
        stages=tuple(sorted(entry.stages or ())),
        quantization=entry.quantization,
        witnesses=tuple(entry.witnesses),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A model at one serving point: where the makers of needs read, and where they write to."""

    facts: ModelFacts
    point: ServingPoint
    quantization: QuantizationFacts
    """Of the checkpoint, or what the serving point puts in its place."""
    page_sizes: Mapping[int, str]
    """With the reason for each."""
    evidence: Evidence
    book: NeedBook
    prefix: str = "model.layers"

    def need(self, kernel: str, parameters: Mapping[str, ParameterValue], claim: Claim) -> None:
        """Note a kernel; parameters that are None are left to the kernel type's defaults."""
        if self.evidence.is_contradicted(claim):
            self.book.contradicted[kernel, claim.module] = claim
            if not self.facts.is_known:
                return
        self.book.sights.update(claim.sights)
        values: dict[str, ParameterValue] = {name: value for name, value in parameters.items() if value is not None}
        key = self._identify(kernel, values, claim)
        if key is None:
            return
        entry = self.book.entries.setdefault(key, _Entry(kernel=kernel, parameters=values))
        entry.places.setdefault(claim.module, set()).update(claim.layers)
        entry.tp.add(claim.tp or self.point.tp)
        entry.ep.add(self.point.ep)
        entry.points.add(self.point)
        if entry.stages is not None:
            entry.stages = {*entry.stages, *claim.stages} if claim.stages else None
        entry.quantization = entry.quantization or claim.quantization
        for witness in self.evidence.find_witnesses(kernel, claim):
            entry.witnesses[witness] = None
        for witness in self._serving_witnesses(values):
            entry.witnesses[witness] = None

    def _identify(self, kernel: str, parameters: Mapping[str, ParameterValue], claim: Claim) -> str | None:
        """Spell the kernel with all defaults filled in; None, and a line of the report, when it cannot be defined."""
        kernel_type = find_kernel_type(kernel)
        if kernel_type is None:
            self.leave_unexplained(kernel, claim.module or kernel, "no kernel type of this name")
            return None
        try:
            values = kernel_type.parameters.model_validate(parameters)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_context=False)[0]
            self.leave_unexplained(kernel, claim.module or kernel, f"{problem['msg']}: {problem['input']!r:.200}")
            return None
        return f"{kernel} {values.model_dump_json()}"

    def _serving_witnesses(self, parameters: Mapping[str, ParameterValue]) -> Iterable[Witness]:
        point = self.point
        place = f"{point.hardware} {point.describe()}" if point.hardware else point.describe()
        is_cookbook = point.source.startswith("sgl-cookbook")
        source = WitnessSource.COOKBOOK if is_cookbook else WitnessSource.ENGINE
        yield Witness(source=source, detail=f"{place}: {point.source}")
        page_size = parameters.get("page_size")
        if isinstance(page_size, int) and page_size in self.page_sizes:
            yield Witness(source=WitnessSource.ENGINE, detail=f"page size {page_size}: {self.page_sizes[page_size]}")

    def explain(self, sight: Sight, remark: str) -> None:
        """Account for a traced call that is part of another kernel, or an elementwise operation of its own."""
        self.book.sights.add(sight)
        self.note(remark)

    def cover(self, module: str) -> None:
        """Account for everything inside a module at once."""
        self.book.covered.add(module)

    def leave_unexplained(self, operation: str, module: str, detail: str) -> None:
        """List something that the model does and no kernel type describes."""
        self.book.unexplained[Unexplained(operation=operation, module=module, detail=detail)] = None

    def note(self, text: str) -> None:
        """Add a remark to the inventory."""
        self.book.notes[text] = None

    def path(self, name: str) -> str:
        """Give the module path in every layer, such as `model.layers.*.self_attn.o_proj`."""
        return f"{self.prefix}.*.{name}"

    def layers_of(self, attention: str) -> frozenset[int]:
        """List the layers that have an attention key."""
        return frozenset(layer.index for layer in self.facts.layers if layer.attention == attention)
