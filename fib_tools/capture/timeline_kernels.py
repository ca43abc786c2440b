"""Kernels of a device in a timeline: on a track for each of its streams, under what the host was at when it launched them.

A profiler says which call of the runtime started a kernel (they share a correlation) and which operation of torch made that
call. The call's moment says which span was open: the innermost one is the kernel's parent, and an arrow leads from it.

    launch  cudaLaunchKernel            12 us .. 15 us, correlation 7, operation 3
    kernel  nvjet_tst_64x8_...          16 us .. 19 us, correlation 7, operation 3, device 0, stream 7
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter as Count
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fib_tools.capture.timeline import HOST, Counter, Span, Timeline, Value

__all__ = ["BANDWIDTH", "ProfilerEvent", "place_kernels"]

BANDWIDTH = "kernels' bandwidth"
"""Bytes that a step moves, over the time from the first of its kernels to the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfilerEvent:
    """What a profiler saw, in the timeline's nanoseconds."""

    role: Literal["operation", "launch", "kernel"]
    """Of torch on the host; a call of the runtime that starts something; what the device did, copies among it."""
    name: str
    start_ns: int
    end_ns: int
    correlation: int = 0
    """The same for a launch and what it started; 0 for none."""
    operation: int = 0
    """The number of torch's operation; of a launch and a kernel, of the one that made the call; 0 for none."""
    device: int = 0
    stream: int = 0
    details: Mapping[str, Value] = field(default_factory=dict)


def place_kernels(timeline: Timeline, events: Iterable[ProfilerEvent]) -> Timeline:
    """Add a span for each kernel, and the bandwidth of steps on the device; without kernels nothing changes.

    A kernel that nobody seems to have launched, or that seems to begin before its launcher (two clocks are never quite the
    same), has no parent. Bytes and FLOPs are those of the step where it launched this kernel only; else nobody knows.
    """
    events = list(events)
    kernels = sorted((each for each in events if each.role == "kernel"), key=lambda each: (each.start_ns, each.end_ns))
    if not kernels:
        return timeline
    parents = _find_parents(timeline.spans, events, kernels)
    names = {each.operation: each.name for each in events if each.role == "operation"}
    tracks = _assign_tracks(kernels)
    paths, launched = timeline.list_paths(), Count(parents)
    placed = [
        Span(
            name=kernel.name or "kernel",
            kind="kernel",
            start_ns=kernel.start_ns,
            end_ns=kernel.end_ns,
            parent=parent,
            track=track,
            details=_describe(kernel, parent, timeline.spans, paths, names, is_alone=launched[parent] == 1),
        )
        for kernel, parent, track in zip(kernels, parents, tracks, strict=True)
    ]
    counters = (*timeline.counters, _count_bandwidth(timeline.spans, placed))
    return timeline.model_copy(update={"spans": _merge(timeline.spans, placed), "counters": counters})


def _find_parents(
    spans: Sequence[Span], events: Sequence[ProfilerEvent], kernels: Sequence[ProfilerEvent]
) -> list[int | None]:
    launches = {each.correlation: each for each in events if each.role == "launch" and each.correlation}
    operations = {each.operation: each for each in events if each.role == "operation" and each.operation}
    on_host = [index for index, span in enumerate(spans) if span.track_name == HOST]
    starts = [spans[index].start_ns for index in on_host]
    found: list[int | None] = []
    for kernel in kernels:
        launch = launches.get(kernel.correlation) or operations.get(kernel.operation)
        at = -1 if launch is None else bisect_right(starts, launch.start_ns) - 1
        parent = on_host[at] if at >= 0 else None
        while parent is not None and launch is not None and spans[parent].end_ns < launch.start_ns:
            parent = spans[parent].parent
        found.append(parent if parent is not None and spans[parent].start_ns <= kernel.start_ns else None)
    return found


def _assign_tracks(kernels: Sequence[ProfilerEvent]) -> list[str]:
    """Give each stream a track; what begins while its stream is not done yet (one kernel may overtake another) a second."""
    ends: dict[tuple[int, int], list[int]] = {}
    names: list[str] = []
    for kernel in kernels:
        lanes = ends.setdefault((kernel.device, kernel.stream), [])
        lane = next((at for at, end in enumerate(lanes) if end <= kernel.start_ns), len(lanes))
        lanes[lane : lane + 1] = [kernel.end_ns]
        names.append(f"GPU {kernel.device} stream {kernel.stream}{f' ({lane + 1})' if lane else ''}")
    return names


def _describe(
    kernel: ProfilerEvent,
    parent: int | None,
    spans: Sequence[Span],
    paths: Sequence[str],
    names: Mapping[int, str],
    *,
    is_alone: bool,
) -> dict[str, Value]:
    details: dict[str, Value] = {"op_type": "kernel", **kernel.details}
    if kernel.operation in names:
        details["operation"] = names[kernel.operation]
    if parent is None:
        return details
    own = spans[parent].details
    details |= {"op_type": own.get("op_type", "kernel"), "launched_by": paths[parent]}
    if is_alone and spans[parent].kind == "step":
        details |= {name: own[name] for name in ("bytes", "flops", "arithmetic_intensity") if name in own}
    return details


def _count_bandwidth(spans: Sequence[Span], kernels: Sequence[Span]) -> Counter:
    """Take the steps in the order in which their kernels began; one that overlaps with the one before is left out."""
    windows: dict[int, tuple[int, int]] = {}
    for kernel in kernels:
        if kernel.parent is not None:
            start, end = windows.get(kernel.parent, (kernel.start_ns, kernel.end_ns))
            windows[kernel.parent] = (start, max(end, kernel.end_ns))
    points: list[tuple[int, float]] = []
    for step, (start, end) in sorted(windows.items(), key=lambda window: window[1]):
        moved = spans[step].details.get("bytes")
        if spans[step].kind == "step" and isinstance(moved, int) and end > start >= (points[-1][0] if points else 0):
            points += [(start, round(moved / (end - start), 3)), (end, 0.0)]
    return Counter(name=BANDWIDTH, unit="GB/s", points=tuple(points))


def _merge(spans: Sequence[Span], kernels: Sequence[Span]) -> tuple[Span, ...]:
    """Sort kernels in among the spans, and count parents anew."""
    everything = [*spans, *kernels]
    order = sorted(range(len(everything)), key=lambda index: everything[index].start_ns)
    places: dict[int | None, int] = {old: new for new, old in enumerate(order)}
    return tuple(everything[old].model_copy(update={"parent": places.get(everything[old].parent)}) for old in order)
