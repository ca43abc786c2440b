"""From measurements to a report: speed-ups, tables by definition, standings, fast_p curves and rejections."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from fib_tools.evaluate.report.report_reading import OWN_TOOL, Reading
from fib_tools.evaluate.report.report_schema import (
    MARKS,
    DefinitionReport,
    DeviceReport,
    FastCurve,
    Measurement,
    Rejection,
    Report,
    SolutionReport,
    Standing,
    WorkloadReport,
)
from fib_tools.model.evidence import Evidence
from fib_tools.model.solution import BASELINE

__all__ = ["build_report", "geometric_mean", "label_workloads"]

_BEST = "best of all"

Item = TypeVar("Item")
Key = TypeVar("Key")


def build_report(reading: Reading) -> Report:
    """Build the report of a dataset; devices, and our measurements and other tools', are kept apart throughout."""
    measurements = _add_speedups(reading.measurements)
    devices, definitions = [], []
    for (device, measured_by), group in _group(measurements, lambda m: (m.device, m.measured_by)).items():
        own = [
            _report_definition(name, of_name, reading.axes)
            for name, of_name in _group(group, lambda m: m.definition).items()
        ]
        definitions += sorted(own, key=lambda report: report.definition)
        devices.append(_report_device(device, measured_by, group, reading.evidence))
    order = {(report.device, report.measured_by): place for place, report in enumerate(_by_weight(devices))}
    return Report(
        devices=tuple(_by_weight(devices)),
        definitions=tuple(sorted(definitions, key=lambda item: order[item.device, item.measured_by])),
        measurements=tuple(
            sorted(
                measurements,
                key=lambda m: (order[m.device, m.measured_by], m.definition, m.author, m.solution, m.workload),
            )
        ),
    )


def _by_weight(devices: Iterable[DeviceReport]) -> list[DeviceReport]:
    """Our own measurements first, GPUs before CPUs, the most measured before the others."""
    return sorted(devices, key=lambda d: (d.measured_by != OWN_TOOL, d.is_cpu, -d.evaluations, d.device))


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Give the geometric mean of what is there and above zero; None of nothing."""
    logs = [math.log(value) for value in values if value is not None and value > 0 and math.isfinite(value)]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def _group(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _yardstick(m: Measurement) -> tuple[str, ...]:
    return m.definition, m.workload, m.device, m.measured_by, m.timer


def _add_speedups(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Hold each time against the fastest baseline of the same workload, device and timer."""
    every = list(measurements)
    best: dict[tuple[str, ...], float] = {}
    for m in every:
        if m.author == BASELINE and m.milliseconds:
            best[_yardstick(m)] = min(m.milliseconds, best.get(_yardstick(m), math.inf))
    return [
        m.model_copy(update={"speedup": best[_yardstick(m)] / m.milliseconds})
        if m.milliseconds and _yardstick(m) in best
        else m
        for m in every
    ]


def label_workloads(axes: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """Name the workloads of one definition by the axes in which they differ, in order of size."""
    names = dict.fromkeys(name for lengths in axes.values() for name in lengths)
    differing = _find_telling(list(names), axes)
    ordered = sorted(axes, key=lambda uuid: (_volume(axes[uuid]), uuid))
    texts = {
        uuid: " ".join(f"{name} {axes[uuid][name]}" for name in differing if name in axes[uuid]) for uuid in ordered
    }
    seen: dict[str, int] = {}
    labels: dict[str, str] = {}
    for uuid, text in texts.items():
        seen[text] = seen.get(text, 0) + 1
        repeated = sum(other == text for other in texts.values()) > 1
        labels[uuid] = f"{text} #{seen[text]}".strip() if repeated else text or "no axes"
    return labels


def _find_telling(names: list[str], axes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Leave out axes, the last first, as long as the others tell the same workloads apart."""

    def count(kept: Sequence[str]) -> int:
        return len({tuple(lengths.get(name) for name in kept) for lengths in axes.values()})

    kept, all_apart = list(names), count(names)
    for name in reversed(names):
        rest = [other for other in kept if other != name]
        if rest and count(rest) == all_apart:
            kept = rest
    return kept


def _volume(lengths: Mapping[str, int]) -> tuple[int, tuple[int, ...]]:
    return math.prod(max(1, length) for length in lengths.values()), tuple(lengths.values())


def _report_definition(
    name: str, measurements: Sequence[Measurement], axes: Mapping[str, Mapping[str, int]]
) -> DefinitionReport:
    uuids = dict.fromkeys(m.workload for m in measurements)
    labels = label_workloads({uuid: axes[uuid] for uuid in uuids})
    baselines = {
        uuid: min((m.milliseconds for m in of_uuid if m.author == BASELINE and m.milliseconds), default=None)
        for uuid, of_uuid in _group(measurements, lambda m: m.workload).items()
    }
    comparable = {m.workload for m in measurements if m.author == BASELINE and m.passed}
    solutions = [
        _report_solution(author, solution, group, len(comparable))
        for (author, solution), group in _group(measurements, lambda m: (m.author, m.solution)).items()
    ]
    first = measurements[0]
    return DefinitionReport(
        definition=name,
        op_type=first.op_type,
        device=first.device,
        measured_by=first.measured_by,
        workloads=tuple(
            WorkloadReport(uuid=uuid, label=label, axes=dict(axes[uuid]), baseline_ms=baselines[uuid])
            for uuid, label in labels.items()
        ),
        solutions=tuple(sorted(solutions, key=_rank_solution)),
    )


def _rank_solution(report: SolutionReport) -> tuple[float, float, float, str, str]:
    rate = report.passed / report.attempted
    return -rate, -(report.speedup or 0.0), -(report.reference_speedup or 0.0), report.author, report.solution


def _report_solution(author: str, solution: str, group: Sequence[Measurement], comparable: int) -> SolutionReport:
    speedups = sorted(m.speedup for m in group if m.speedup is not None)
    return SolutionReport(
        author=author,
        solution=solution,
        passed=sum(m.passed for m in group),
        attempted=len(group),
        speedup=geometric_mean(speedups),
        compared=len(speedups),
        reference_speedup=geometric_mean(m.reference_speedup for m in group),
        percent=geometric_mean(m.percent for m in group),
        fast=_at_marks(speedups, comparable),
        rules=tuple(dict.fromkeys(m.rule for m in group if m.rule)),
    )


def _at_marks(speedups: Sequence[float], workloads: int) -> dict[str, float]:
    if not workloads:
        return {}
    return {f"{mark:g}": sum(value >= mark for value in speedups) / workloads for mark in MARKS}


def _report_device(
    device: str, measured_by: str, group: Sequence[Measurement], evidence: Mapping[str, Evidence]
) -> DeviceReport:
    comparable = {(m.definition, m.workload) for m in group if m.author == BASELINE and m.passed}
    by_author = _group(group, lambda m: m.author)
    standings = [_stand(author, own, len(comparable)) for author, own in by_author.items()]
    seen = [found for m in group if m.evidence is not None and (found := evidence.get(m.evidence)) is not None]
    return DeviceReport(
        device=device,
        measured_by=measured_by,
        is_cpu=any(item.gpu.is_cpu for item in seen),
        evaluations=len(group),
        passed=sum(m.passed for m in group),
        rejected=sum(m.rule is not None for m in group),
        timers=tuple(sorted({m.timer for m in group if m.timer})),
        newest=max(m.timestamp for m in group),
        leaderboard=tuple(sorted(standings, key=_rank_author)),
        curves=_draw_curves(by_author, len(comparable)),
        rejections=_list_rejections(group),
    )


def _rank_author(standing: Standing) -> tuple[float, float, float, float, str]:
    fast, speedup, reference = standing.fast_1 or 0.0, standing.speedup or 0.0, standing.reference_speedup or 0.0
    return -fast, -speedup, -standing.correct, -reference, standing.author


def _best(group: Iterable[Measurement]) -> list[Measurement]:
    """Keep an author's fastest passing measurement of each workload."""
    found: dict[tuple[str, str], Measurement] = {}
    for m in group:
        if m.milliseconds is None:
            continue
        key = (m.definition, m.workload)
        # times by different timers are not comparable, so speed-ups decide where there are any
        if key not in found or _pace(m) > _pace(found[key]):
            found[key] = m
    return list(found.values())


def _pace(m: Measurement) -> tuple[float, float]:
    return m.speedup or 0.0, -(m.milliseconds or 0.0)


def _stand(author: str, own: Sequence[Measurement], comparable: int) -> Standing:
    best = _best(own)
    speedups = [m.speedup for m in best if m.speedup is not None]
    return Standing(
        author=author,
        definitions=len({m.definition for m in own}),
        solutions=len({(m.definition, m.solution) for m in own}),
        attempted=len({(m.definition, m.workload) for m in own}),
        passed=len(best),
        correct=sum(m.passed for m in own) / len(own),
        rejected=sum(m.rule is not None for m in own),
        speedup=geometric_mean(speedups),
        reference_speedup=geometric_mean(m.reference_speedup for m in best),
        fast_1=sum(value >= 1.0 for value in speedups) / comparable if comparable else None,
        percent=geometric_mean(m.percent for m in best),
    )


def _draw_curves(by_author: Mapping[str, Sequence[Measurement]], comparable: int) -> tuple[FastCurve, ...]:
    if not comparable:
        return ()
    others = {author: own for author, own in by_author.items() if author != BASELINE}
    if not others:
        return ()
    everyone = [m for own in others.values() for m in own]
    curves = [_draw(author, own, comparable) for author, own in others.items()]
    ranked = sorted(curves, key=lambda curve: (-curve.fast["1"], -len(curve.speedups), curve.name))
    return (_draw(_BEST, everyone, comparable), *ranked) if len(ranked) > 1 else tuple(ranked)


def _draw(name: str, group: Iterable[Measurement], comparable: int) -> FastCurve:
    speedups = tuple(sorted(m.speedup for m in _best(group) if m.speedup is not None))
    return FastCurve(name=name, workloads=comparable, speedups=speedups, fast=_at_marks(speedups, comparable))


def _list_rejections(group: Iterable[Measurement]) -> tuple[Rejection, ...]:
    broken = _group((m for m in group if m.rule), lambda m: (m.rule or "", m.author, m.solution, m.definition))
    return tuple(
        Rejection(
            rule=rule,
            author=author,
            solution=solution,
            definition=definition,
            device=found[0].device,
            workloads=len(found),
            detail=next((m.detail for m in found if m.detail), ""),
        )
        for (rule, author, solution, definition), found in sorted(broken.items())
    )
