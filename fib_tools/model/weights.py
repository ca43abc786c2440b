"""How much each Workload of a Definition counts beside the others: as often as it occurs, where that is known of all."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

__all__ = ["find_weights", "geometric_mean", "is_weighted"]


def is_weighted(counts: Collection[int | None]) -> bool:
    """Tell whether every Workload says how often it occurs: some counts alone do not compare with the rest."""
    return bool(counts) and all(counts)


def find_weights(counts: Mapping[str, int | None]) -> dict[str, float]:
    """Give each Workload its share of what occurs; the same to all where that is not known."""
    known = is_weighted(counts.values())
    weights = {workload: (count or 1) if known else 1 for workload, count in counts.items()}
    total = sum(weights.values())
    return {workload: weight / total for workload, weight in weights.items()}


def geometric_mean(weighted: Iterable[tuple[float, float]]) -> float:
    """Give the geometric mean of weights and values, of which there is at least one."""
    pairs = list(weighted)
    total = sum(weight for weight, _ in pairs)
    return math.exp(sum(weight * math.log(value) for weight, value in pairs) / total)
