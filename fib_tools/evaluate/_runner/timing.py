"""Timing calls on a GPU: how long the device works for each, whatever the host does meanwhile.

For each call: inputs are made, the L2 is flushed, the device spins while the host queues the call, a marker, the call,
a marker. Nothing waits for the device in between, so a chain of small kernels runs without gaps of the host's making.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from fib_tools.errors import ChildCrashedError
from fib_tools.evaluate._runner.cupti import Activity, Cupti, Kind
from fib_tools.evaluate._runner.gpu import Gpu
from fib_tools.evaluate._runner.refusals import RuleError

__all__ = ["ActivityTimer", "EventTimer", "HostTimer", "Job", "Timed", "Timer"]

_LONGEST_SPIN_US = 3000.0
_FIRST_SPIN_US = 300.0
_SHORTEST_SPIN_US = 12.0
_SPIN_MARGIN = 1.4
"""The host is sometimes slower than last time."""
_LATE_NS = 20_000
"""A call whose first work begins later after its marker was still being queued: the time counts as its own."""
_KERNEL_NAMES = 64
_COPY_STARTS_NS = 2_000
"""The record of a copy or a memset that is launched alone holds so much that it does not cost inside a graph."""


@dataclass(kw_only=True)
class Timed:
    """What a batch of calls took."""

    milliseconds: list[float] = field(default_factory=list)
    """On the device, for each call: first start to last end."""
    busy_milliseconds: list[float] = field(default_factory=list)
    """In which the device surely worked for the call: no gaps between kernels, no start of a copy; where there are records."""
    host_microseconds: list[float] = field(default_factory=list)
    """Until each call had returned."""
    kernels: list[str] = field(default_factory=list)
    """Of the last call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One call to be timed, in three steps."""

    before: Callable[[], None]
    """Make inputs; not timed."""
    call: Callable[[], None]
    after: Callable[[], None]
    """Deliver outputs; not timed."""


class Timer(Protocol):
    """A way to time calls."""

    name: str

    def time(self, jobs: list[Job]) -> Timed:
        """Make the calls one after the other, with an L2 that holds nothing of theirs."""


class _Spin:
    """Knows how long the host takes to queue a call."""

    def __init__(self) -> None:
        self._last: list[float] = []

    def note(self, microseconds: float) -> None:
        self._last = [*self._last[-7:], microseconds]

    @property
    def microseconds(self) -> float:
        typical = statistics.median(self._last) if self._last else _FIRST_SPIN_US
        return min(_LONGEST_SPIN_US, max(_SHORTEST_SPIN_US, _SPIN_MARGIN * typical + 5.0))


class ActivityTimer:
    """CUPTI: the device's own record of each kernel, copy and memset, on every stream."""

    name = "cupti"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._cupti = Cupti()
        self._check_clock()

    def _check_clock(self) -> None:
        """Make sure that the records are what they are taken for."""
        self._gpu.synchronize()
        self._cupti.collect()
        marks = [self._gpu.mark(), self._gpu.mark()]
        self._gpu.spin(50)
        self._gpu.synchronize()
        found = self._cupti.collect()
        values = [activity.value for activity in found if activity.kind == Kind.MEMSET]
        spins = [activity.end - activity.start for activity in found if activity.kind == Kind.KERNEL]
        if values != marks or len(spins) != 1 or not 10_000 < spins[0] < 1_000_000:
            raise ChildCrashedError(
                f"CUPTI's records cannot be read: markers {len(values)} of 2, spins {spins}",
                todo="use --timer events, and report the CUDA version",
            )

    def time(self, jobs: list[Job]) -> Timed:
        """Make the calls one after the other, and give what each took."""
        gpu, timed, spin = self._gpu, Timed(), _Spin()
        gpu.synchronize()
        self._cupti.switch(on=True)
        self._cupti.collect()
        marks: list[tuple[int, int]] = []
        for job in jobs:
            job.before()
            gpu.flush()
            gpu.spin(spin.microseconds)
            first = gpu.mark()
            begun = time.perf_counter()
            job.call()
            host = (time.perf_counter() - begun) * 1e6
            marks.append((first, gpu.mark()))
            job.after()
            spin.note(host)
            timed.host_microseconds.append(host)
        gpu.synchronize()
        calls = _cut(self._cupti.collect(), marks)
        self._cupti.switch(on=False)
        for mark, activities in calls:
            start, end = min(each.start for each in activities), max(each.end for each in activities)
            late = start - mark.end
            timed.milliseconds.append((end - start + (late if late > _LATE_NS else 0)) / 1e6)
            timed.busy_milliseconds.append(_unite(activities) / 1e6)
        timed.kernels = [activity.name or _NAMES.get(activity.kind, "") for activity in calls[-1][1]][:_KERNEL_NAMES]
        return timed


_NAMES = {Kind.MEMCPY: "memcpy", Kind.MEMCPY_PEER: "memcpy", Kind.MEMSET: "memset"}


def _unite(activities: list[Activity]) -> int:
    """Give the nanoseconds in which at least one of them was under way; of a copy, without what starting it may take."""
    busy, reached = 0, 0
    for each in sorted(activities, key=lambda activity: activity.start):
        start = each.start + (_COPY_STARTS_NS if each.kind in _NAMES else 0)
        busy += max(0, each.end - max(start, reached))
        reached = max(reached, each.end)
    return busy


def _cut(activities: list[Activity], marks: list[tuple[int, int]]) -> list[tuple[Activity, list[Activity]]]:
    """Give the device's work of each call, and the marker before it, by order of launch.

    Raises:
        RuleError: a call has none, or work was launched outside the calls that the harness did not launch.
    """
    places = {activity.value: index for index, activity in enumerate(activities) if activity.kind == Kind.MEMSET}
    calls, outside = [], []
    last = 0
    for number, (first, second) in enumerate(marks):
        if first not in places or second not in places:
            raise RuleError("hidden-work", f"the markers of call {number} are not among the device's records")
        begin, end = places[first], places[second]
        inside = activities[begin + 1 : end]
        if not inside:
            raise RuleError("hidden-work", f"call {number} gave the device nothing to do")
        outside.append(begin - last)
        calls.append((activities[begin], inside))
        last = end + 1
    outside.append(len(activities) - last)
    _check_outside(outside)
    return calls


def _check_outside(counts: list[int]) -> None:
    """Between two calls the harness does the same each time; anything more is somebody else's."""
    between = counts[1:-1]
    if len(between) > 2 and max(between) > statistics.median(between):
        call = counts.index(max(between), 1) - 1
        more = max(between) - int(statistics.median(between))
        raise RuleError("hidden-work", f"after call {call} the device did {more} pieces of work that no call asked for")


class EventTimer:
    """CUDA events around each call, with what an empty pair measures taken off."""

    name = "events"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._elapsed = torch.cuda.Event.elapsed_time
        self._empty = statistics.median(self._measure_empty() for _ in range(20))

    def _measure_empty(self) -> float:
        first, second = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._gpu.spin(20)
        first.record()
        second.record()
        self._gpu.synchronize()
        return float(self._elapsed(first, second))

    def time(self, jobs: list[Job]) -> Timed:
        """Make the calls one after the other, and give what each took."""
        gpu, timed, spin = self._gpu, Timed(), _Spin()
        pairs = []
        for job in jobs:
            first, second = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            job.before()
            gpu.flush()
            gpu.spin(spin.microseconds)
            first.record()
            begun = time.perf_counter()
            job.call()
            host = (time.perf_counter() - begun) * 1e6
            second.record()
            job.after()
            spin.note(host)
            pairs.append((first, second))
            timed.host_microseconds.append(host)
        gpu.synchronize()
        timed.milliseconds = [max(0.0, self._elapsed(first, second) - self._empty) for first, second in pairs]
        return timed


class HostTimer:
    """The host's clock, on a CPU."""

    name = "host"

    def time(self, jobs: list[Job]) -> Timed:
        """Make the calls one after the other, and give what each took."""
        timed = Timed()
        for job in jobs:
            job.before()
            begun = time.perf_counter()
            job.call()
            spent = time.perf_counter() - begun
            job.after()
            timed.milliseconds.append(spent * 1e3)
            timed.host_microseconds.append(spent * 1e6)
        return timed
