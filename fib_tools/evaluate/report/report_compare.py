"""Two Solutions, or two runs, workload by workload: a difference is one only where the interval of the ratio says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fib_tools.errors import FormatError, RequestError
from fib_tools.evaluate.judge.statistics import Ratio, ratio_interval
from fib_tools.evaluate.report.report_reading import OWN_TOOL, Reading
from fib_tools.evaluate.report.report_schema import ComparedPair, Comparison, Measurement, Verdict
from fib_tools.evaluate.report.report_tables import geometric_mean, label_workloads
from fib_tools.model.evidence import Evidence

__all__ = ["compare_readings", "compare_solutions", "find_solution"]

_PairKey = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Side:
    measurements: Mapping[_PairKey, Measurement]
    evidence: Mapping[str, Evidence]


def find_solution(reading: Reading, text: str) -> tuple[str, str] | None:
    """Find the author and name of a Solution said as `name` or `author/name`; None when there is none.

    Raises:
        RequestError: several authors have a Solution of this name.
    """
    known = sorted({(m.author, m.solution) for m in reading.measurements})
    found = [item for item in known if text in {item[1], "/".join(item)}]
    if len(found) > 1:
        options = ", ".join("/".join(item) for item in found)
        raise RequestError(f"{text!r} is the name of several Solutions", todo=f"say which: {options}")
    return found[0] if found else None


def compare_solutions(reading: Reading, first: tuple[str, str], second: tuple[str, str]) -> Comparison:
    """Compare two Solutions of a dataset on the workloads and devices that both ran on.

    Raises:
        RequestError: they share no workload.
    """

    def key(m: Measurement) -> _PairKey:
        return m.definition, m.workload, m.device, m.measured_by

    sides = [
        _Side(
            measurements=_index((m for m in reading.measurements if (m.author, m.solution) == solution), key),
            evidence=reading.evidence,
        )
        for solution in (first, second)
    ]
    return _compare("/".join(first), "/".join(second), sides[0], sides[1], reading.axes)


def compare_readings(first: tuple[str, Reading], second: tuple[str, Reading]) -> Comparison:
    """Compare two datasets, or two runs, where the same Solution ran on the same Workload and device.

    Raises:
        RequestError: they share nothing.
    """

    def key(m: Measurement) -> _PairKey:
        return m.definition, m.workload, m.device, m.measured_by, m.author, m.solution

    (name, one), (other_name, other) = first, second
    return _compare(
        name,
        other_name,
        _Side(measurements=_index(one.measurements, key), evidence=one.evidence),
        _Side(measurements=_index(other.measurements, key), evidence=other.evidence),
        {**one.axes, **other.axes},
    )


def _index(measurements: Iterable[Measurement], key: Callable[[Measurement], _PairKey]) -> dict[_PairKey, Measurement]:
    return {key(m): m for m in measurements}


def _compare(first: str, second: str, one: _Side, other: _Side, axes: Mapping[str, Mapping[str, int]]) -> Comparison:
    shared = [key for key in one.measurements if key in other.measurements]
    if not shared:
        raise RequestError(
            f"{first} and {second} were measured on no common workload and device",
            todo="run: fib bench, with both of them",
        )
    labels = _label(shared, axes)
    pairs = [_compare_pair(key, one, other, labels[key[0], key[1]]) for key in shared]
    order = {key: place for place, key in enumerate(labels)}
    pairs.sort(key=lambda pair: (pair.device, pair.definition, order[pair.definition, pair.workload], pair.first))
    return Comparison(first=first, second=second, ratios=_average(pairs), pairs=tuple(pairs))


def _average(pairs: Iterable[ComparedPair]) -> dict[str, float]:
    by_device: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.ratio is not None:
            by_device.setdefault(pair.device, []).append(pair.ratio)
    means = {device: geometric_mean(ratios) for device, ratios in by_device.items()}
    return {device: mean for device, mean in means.items() if mean is not None}


def _label(keys: Iterable[_PairKey], axes: Mapping[str, Mapping[str, int]]) -> dict[tuple[str, str], str]:
    by_definition: dict[str, dict[str, Mapping[str, int]]] = {}
    for definition, workload, *_ in keys:
        by_definition.setdefault(definition, {})[workload] = axes[workload]
    return {
        (definition, workload): label
        for definition, lengths in by_definition.items()
        for workload, label in label_workloads(lengths).items()
    }


def _compare_pair(key: _PairKey, one: _Side, other: _Side, label: str) -> ComparedPair:
    a, b = one.measurements[key], other.measurements[key]
    ratio, low, high, verdict = _judge(a, b, one.evidence.get(a.evidence or ""), other.evidence.get(b.evidence or ""))
    return ComparedPair(
        definition=a.definition,
        workload=a.workload,
        label=label,
        device=a.device if a.measured_by == OWN_TOOL else f"{a.device} ({a.measured_by})",
        first=f"{a.author}/{a.solution}",
        second=f"{b.author}/{b.solution}",
        first_ms=a.milliseconds,
        second_ms=b.milliseconds,
        ratio=ratio,
        low=low,
        high=high,
        verdict=verdict,
    )


def _judge(
    a: Measurement, b: Measurement, seen_a: Evidence | None, seen_b: Evidence | None
) -> tuple[float | None, float | None, float | None, Verdict]:
    if not (a.passed and b.passed):
        verdict = Verdict.ONLY_FIRST if a.passed else Verdict.ONLY_SECOND if b.passed else Verdict.NEITHER
        return None, None, None, verdict
    if a.timer != b.timer:
        return None, None, None, Verdict.TIMERS
    interval = _find_interval(seen_a, seen_b)
    if interval is None:
        ratio = a.milliseconds / b.milliseconds if a.milliseconds and b.milliseconds else None
        return ratio, None, None, Verdict.NO_SAMPLES
    verdict = Verdict.SAME if not interval.is_difference else Verdict.SECOND if interval.ratio > 1 else Verdict.FIRST
    return interval.ratio, interval.low, interval.high, verdict


def _find_interval(a: Evidence | None, b: Evidence | None) -> Ratio | None:
    if not (a and b and a.series and b.series):
        return None
    try:
        return ratio_interval(a.series[0].samples, b.series[0].samples)
    except FormatError:  # too few samples to judge by
        return None
