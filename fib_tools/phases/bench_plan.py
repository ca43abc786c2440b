"""The plan of a benchmark run: which Solutions fit the hardware, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass

from fib_tools.dataset.store import Dataset
from fib_tools.errors import RequestError
from fib_tools.evaluate.engines.items import BlobHasher, Bundle, Limits, Options, Plan, plan_items

__all__ = ["BenchWork", "limit_time"]

_MESSAGES = 20
"""To a Solution on one Workload, each with the time limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchWork:
    """What is to be evaluated, and how, whatever the hardware turns out to be."""

    dataset: Dataset
    bundles: list[Bundle]
    options: Options

    def plan(self, hardware: str, capability: int) -> Plan:
        """Plan for a model of GPU.

        Raises:
            RequestError: every Solution is for others.
        """
        items = plan_items(self._fit(capability), hash_blob=BlobHasher(self.dataset.root))
        if not items:
            raise RequestError(
                f"no Solution chosen is for {hardware}{f' (sm{capability})' if capability else ''}",
                todo="see spec.target_hardware of each, or choose others",
            )
        return Plan(dataset=str(self.dataset.root), hardware=hardware, options=self.options, items=items)

    def find_unfit(self, capability: int) -> tuple[str, ...]:
        """Find the Solutions that are for other hardware, by name."""
        pairs = zip(self.bundles, self._fit(capability), strict=True)
        return tuple(each.name for whole, left in pairs for each in whole.solutions if each not in left.solutions)

    def _fit(self, capability: int) -> list[Bundle]:
        is_cpu = self.options.device == "cpu"
        return [bundle.for_cpu() if is_cpu else bundle.for_gpu(capability) for bundle in self.bundles]


def limit_time(time_limit: float, build_limit: float = 600, *, together: int) -> Limits:
    """Give a worker, which tells of a Workload's Solutions together, as long as all of them may take."""
    limits = Limits(evaluation_seconds=time_limit, build_seconds=build_limit)
    silence = together * (limits.build_seconds + _MESSAGES * time_limit)
    return limits.model_copy(update={"silence_seconds": max(limits.silence_seconds, silence)})
