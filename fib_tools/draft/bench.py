"""The evaluator as a search uses it: some Solutions on all Workloads of one Definition, and nothing held in between."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fib_tools.dataset.store import Dataset
from fib_tools.draft.target import Shape, Target
from fib_tools.draft.work import count_work
from fib_tools.errors import RequestError
from fib_tools.evaluate.engines.engine import Outcome
from fib_tools.evaluate.engines.engine_local import LocalEngine
from fib_tools.evaluate.engines.items import BlobHasher, Bundle, Options, Plan, hash_solution, plan_items
from fib_tools.evaluate.engines.journal import find_reusable
from fib_tools.evaluate.judge.contest import refuse_sources
from fib_tools.evaluate.judge.refusal import Refusal
from fib_tools.model.definition import Definition
from fib_tools.model.evidence import Evidence, Gpu
from fib_tools.model.solution import Language, Solution
from fib_tools.model.trace import EvaluationStatus
from fib_tools.model.workload import Workload

__all__ = ["Bench", "make_target"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Evaluates; the GPUs are locked only meanwhile, so that others can use them while a model thinks."""

    dataset: Dataset
    bundle: Bundle
    """The Definition with its Workloads; its Solutions do not count."""
    options: Options
    hardware: str
    """The device's model."""
    gpus: int
    tell: Callable[[str], None]
    untried: int = 0
    """Workloads of the Definition that are left out."""

    @property
    def workloads(self) -> frozenset[str]:
        """The uuids of those that count."""
        return frozenset(workload.uuid for workload in self.bundle.workloads)

    def take_first(self, count: int | None) -> Bench:
        """Take so many Workloads at most; all for None."""
        return self.narrow({workload.uuid for workload in self.bundle.workloads[:count]})

    def narrow(self, uuids: Collection[str]) -> Bench:
        """Take these Workloads only.

        Raises:
            RequestError: one of them is not in the dataset any more.
        """
        kept = tuple(workload for workload in self.bundle.workloads if workload.uuid in uuids)
        if len(kept) < len(uuids):
            missing = sorted(set(uuids) - {workload.uuid for workload in kept})
            what = f"the Workload {missing[0]} of {self.bundle.definition.name} is not there any more"
            raise RequestError(what, where=str(self.dataset.root), todo="begin a new run; what this one made is kept")
        left_out = len(self.bundle.workloads) - len(kept)
        bundle = self.bundle.model_copy(update={"workloads": kept})
        return replace(self, bundle=bundle, untried=self.untried + left_out)

    def evaluate(self, solutions: Sequence[Solution]) -> dict[str, list[Evidence]]:
        """Evaluate Solutions on all Workloads; evidence by the Solution's hash, in the order of the Workloads.

        Raises:
            RequestError: there are not so many GPUs.
            ChildCrashedError: no worker can be started.
        """
        refused = {each.hash: refusal for each in solutions if (refusal := refuse_sources(each)) is not None}
        runnable = tuple(each for each in solutions if each.hash not in refused)
        written = tuple(each for each in solutions if each.hash in refused)
        return {**self._refuse(written, refused), **(self._run(runnable) if runnable else {})}

    def _refuse(self, solutions: tuple[Solution, ...], refused: Mapping[str, Refusal]) -> dict[str, list[Evidence]]:
        """Say of Solutions on every Workload what follows from their sources; no engine is started."""
        plan = self._plan(self.bundle.model_copy(update={"solutions": solutions}), self.hardware)
        axes = {workload.uuid: workload.axes for workload in self.bundle.workloads}
        found: dict[str, list[Evidence]] = {}
        for item in plan.items:
            for ref in item.solutions:
                refusal = refused[ref.hash]
                evidence = Evidence(
                    subject=item.subject(ref, self.hardware),
                    status=refusal.status,
                    rule=refusal.rule,
                    detail=refusal.detail,
                    axes=axes[item.workload],
                    op_type=item.op_type,
                    gpu=Gpu(name=self.hardware),
                )
                found.setdefault(ref.hash, []).append(evidence)
        return found

    def _run(self, solutions: tuple[Solution, ...]) -> dict[str, list[Evidence]]:
        bundle = self.bundle.model_copy(update={"solutions": solutions})
        with LocalEngine({bundle.definition.name: bundle}.__getitem__, gpus=self.gpus) as engine:
            plan = self._plan(bundle, engine.hardware)
            known = {evidence.key: evidence for evidence in find_reusable(self.dataset, plan)}
            left = [rest for item in plan.items if (rest := item.without(known, plan.hardware)) is not None]
            for outcome in engine.run(plan, left) if left else ():
                self._take(outcome, known)
        return _sort(plan, known)

    def recall(self, solutions: Sequence[Solution], hardware: str) -> dict[str, list[Evidence]]:
        """Give what the dataset has evidence on, and measure nothing."""
        plan = self._plan(self.bundle.model_copy(update={"solutions": tuple(solutions)}), hardware)
        return _sort(plan, {evidence.key: evidence for evidence in find_reusable(self.dataset, plan)})

    def _plan(self, bundle: Bundle, hardware: str) -> Plan:
        items = plan_items([bundle], hash_blob=BlobHasher(self.dataset.root))
        return Plan(dataset=str(self.dataset.root), hardware=hardware, options=self.options, items=items)

    def _take(self, outcome: Outcome, known: dict[str, Evidence]) -> None:
        if outcome.evidence is None:
            self.tell(f"{outcome.solution.name}: {outcome.failure}")
        else:
            known[outcome.key] = outcome.evidence


def _sort(plan: Plan, known: Mapping[str, Evidence]) -> dict[str, list[Evidence]]:
    """Give the evidence of each Solution, by its hash, in the order of the Workloads."""
    found: dict[str, list[Evidence]] = {}
    for item in plan.items:
        for ref in item.solutions:
            mine = found.setdefault(ref.hash, [])
            evidence = known.get(item.key(ref, plan.hardware))
            if evidence is not None:
                mine.append(evidence)
    return found


def make_target(
    bench: Bench,
    language: Language,
    *,
    capability: int,
    baselines: Sequence[Solution],
    found: dict[str, list[Evidence]],
) -> Target:
    """Put together what a brief says, from the baselines' evidence: the fastest one of each Workload counts."""
    passed = [
        (solution, evidence)
        for solution in baselines
        for evidence in found.get(hash_solution(solution), ())
        if evidence.status is EvaluationStatus.PASSED and evidence.milliseconds
    ]
    fastest: dict[str, tuple[Solution, Evidence]] = {}
    for solution, evidence in passed:
        uuid = evidence.subject.workload
        if uuid not in fastest or (evidence.milliseconds or 0.0) < (fastest[uuid][1].milliseconds or 0.0):
            fastest[uuid] = solution, evidence
    some = next((evidence for _, evidence in fastest.values()), None)
    roofline = some.roofline if some else None
    bundle, root = bench.bundle, bench.dataset.root
    return Target(
        definition=bundle.definition,
        language=language,
        hardware=bench.hardware,
        capability=capability,
        bounds=bundle.bounds,
        shapes=tuple(
            _make_shape(bundle.definition, workload, fastest.get(workload.uuid, (None, None))[1], root)
            for workload in bundle.workloads
        ),
        baseline=", ".join(dict.fromkeys(solution.name for solution, _ in fastest.values())),
        bandwidth=roofline.bandwidth if roofline else 0.0,
        flops_per_second=roofline.flops_per_second if roofline else 0.0,
        versions={name: some.libs[name] for name in ("torch", "triton", "cuda") if name in some.libs} if some else {},
    )


def _make_shape(definition: Definition, workload: Workload, evidence: Evidence | None, root: Path) -> Shape:
    roofline = evidence.roofline if evidence else None
    work = roofline or count_work(definition, workload, root)
    return Shape(
        workload=workload.uuid,
        axes=workload.axes,
        count=workload.count,
        limit_ms=roofline.limit_ms if roofline else None,
        bound=roofline.bound if roofline else "",
        bytes=work.bytes if work else 0,
        flops=work.flops if work else 0,
        baseline_ms=evidence.milliseconds if evidence else None,
        reference_ms=evidence.reference_ms if evidence else None,
    )
