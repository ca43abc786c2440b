"""Who says that a model has a kernel: the config, the transformers trace, SGLang's lines, FlashInfer's traced APIs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.structure_schema import OpCall, OpKind, Structure
from fib_tools.model.kernel import Witness, WitnessSource
from fib_tools.op_types.registry import find_kernel_type
from fib_tools.sources.flashinfer import TracedApis
from fib_tools.sources.sglang import LinearFact, SglangFacts

__all__ = ["Claim", "Evidence", "Sight"]

_CALL_SITES_SHOWN = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """What the trace would show of a kernel, before any cutting."""

    kind: OpKind
    attributes: tuple[tuple[str, int | float | str | bool | None], ...] = ()
    """Attributes that the call must have; one that the trace does not give counts as equal."""
    modules: int = 1
    """How many modules make such a call, since two parts of one GEMM may be of one size."""

    def matches(self, op: OpCall) -> bool:
        """Tell whether a traced call is the one meant."""
        return op.kind == self.kind and all(
            name not in op.attributes or op.attributes[name] == value for name, value in self.attributes
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Why a kernel is needed."""

    module: str = ""
    layers: frozenset[int] = frozenset()
    stages: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    """Keys of `ModelFacts.provenance`."""
    sights: tuple[Sight, ...] = ()
    attribute: str = ""
    """The linear layer's attribute in SGLang's model file."""
    engine: str = ""
    """What serving adds that no model file shows."""
    quantization: str | None = None
    tp: int | None = None
    """Where it is not the serving point's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """The sources of one model."""

    facts: ModelFacts
    structure: Structure | None = None
    sglang: SglangFacts | None = None
    traced: TracedApis | None = None
    linears: tuple[LinearFact, ...] = ()
    """The linear layers of the model's class in SGLang."""
    seen: dict[Sight, tuple[OpCall, ...]] = field(default_factory=dict)
    """What was looked up in the trace so far."""

    @classmethod
    def gather(
        cls, facts: ModelFacts, *, structure: Structure | None, sglang: SglangFacts | None, traced: TracedApis | None
    ) -> Evidence:
        """Put the sources together and look up what SGLang's model file builds."""
        linears = () if sglang is None else sglang.find_linears(facts.architecture)
        return cls(facts=facts, structure=structure, sglang=sglang, traced=traced, linears=linears)

    def find_draft_model(self) -> str | None:
        """Find the line of SGLang's class for the model's own MTP layers."""
        if self.sglang is None:
            return None
        names = (f"{self.facts.architecture}{suffix}" for suffix in ("MTP", "NextN"))
        return self.sglang.find_model_implementation(names)

    def find_calls(self, sight: Sight) -> tuple[OpCall, ...]:
        """Find the traced calls that a sight means; none without a trace."""
        if self.structure is None:
            return ()
        if sight not in self.seen:
            self.seen[sight] = tuple(op for op in self.structure.ops if sight.matches(op))
        return self.seen[sight]

    def is_contradicted(self, claim: Claim) -> bool:
        """Tell whether the trace would show the claimed kernel and does not."""
        return bool(self.structure and claim.sights) and not any(self._is_seen(sight) for sight in claim.sights)

    def _is_seen(self, sight: Sight) -> bool:
        return len({op.module for op in self.find_calls(sight)}) >= sight.modules

    def find_witnesses(self, kernel: str, claim: Claim) -> tuple[Witness, ...]:
        """Collect everyone who confirms a claim; the architecture itself where nobody else does."""
        found = [
            *self._from_config(claim),
            *self._from_trace(claim),
            *self._from_sglang(kernel, claim),
            *self._from_flashinfer(kernel),
        ]
        if claim.engine:
            found.append(Witness(source=WitnessSource.ENGINE, detail=claim.engine))
        if not found:
            found.append(Witness(source=WitnessSource.CONFIG, detail=f"architectures={self.facts.architecture}"))
        return tuple(dict.fromkeys(found))

    def _from_config(self, claim: Claim) -> Iterable[Witness]:
        for key in claim.facts:
            if key in self.facts.provenance:
                yield Witness(source=WitnessSource.CONFIG, detail=self.facts.provenance[key])

    def _from_trace(self, claim: Claim) -> Iterable[Witness]:
        for sight in claim.sights:
            modules = dict.fromkeys(op.module for op in self.find_calls(sight) if op.module)
            for module in list(modules)[:_CALL_SITES_SHOWN]:
                yield Witness(source=WitnessSource.TRACE, detail=module)

    def _from_sglang(self, kernel: str, claim: Claim) -> Iterable[Witness]:
        if self.sglang is None:
            return
        if claim.attribute:
            for linear in self.linears:
                if linear.attribute == claim.attribute:
                    detail = f"{linear.file}:{linear.line} {linear.class_name}.{linear.attribute} = {linear.linear}"
                    yield Witness(source=WitnessSource.SGLANG, detail=detail)
        fi_api = _find_api(kernel)
        if fi_api is not None:
            for line in self.sglang.find_call_sites(fi_api)[:_CALL_SITES_SHOWN]:
                yield Witness(source=WitnessSource.SGLANG, detail=f"{line} calls {fi_api}")

    def _from_flashinfer(self, kernel: str) -> Iterable[Witness]:
        fi_api = _find_api(kernel)
        api = self.traced.find(fi_api) if self.traced is not None and fi_api is not None else None
        if api is not None:
            yield Witness(source=WitnessSource.FLASHINFER, detail=f"{api.fi_api} ({api.file}:{api.line})")


def _find_api(kernel: str) -> str | None:
    kernel_type = find_kernel_type(kernel)
    return None if kernel_type is None else kernel_type.fi_api
