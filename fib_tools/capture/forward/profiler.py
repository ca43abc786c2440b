"""torch.profiler around a run: its Chrome profile, and what of it has a place in a timeline.

In the profile an event is a line such as this, in microseconds of a clock of its own:

    {"ph": "X", "cat": "kernel", "name": "...", "ts": 12.016, "dur": 3.1,
     "args": {"External id": 3, "correlation": 7, "device": 0, "stream": 7, "grid": [8, 1, 1], "block": [128, 1, 1]}}
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fib_tools.capture.timeline import Value
from fib_tools.capture.timeline_kernels import ProfilerEvent
from fib_tools.errors import FormatError
from fib_tools.host.files import storage_errors

__all__ = ["SUFFIX", "Marker", "Profile", "read_events", "run_profiler"]

SUFFIX = ".pt.trace.json"
"""What TensorBoard's plugin looks for."""

_MARK = "fib-tools clock"
_MARKS = 16
"""The more, the nearer the two clocks come: the best of them is off by a few microseconds at most."""
_ROLES: Mapping[str, Literal["operation", "launch", "kernel"]] = {
    "cpu_op": "operation",
    "user_annotation": "operation",
    "cuda_runtime": "launch",
    "cuda_driver": "launch",
    "kernel": "kernel",
    "gpu_memcpy": "kernel",
    "gpu_memset": "kernel",
}
"""By Kineto's category."""
_DETAILS = ("grid", "block", "registers per thread", "shared memory", "bytes", "correlation")


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """A span in the profile, and between which two moments of our clock it began."""

    name: str
    after_ns: int
    before_ns: int


@dataclass(kw_only=True)
class Profile:
    """What the profiler saw; whole once it has stopped."""

    document: bytes = b""
    """A Chrome profile, for TensorBoard and chrome://tracing."""
    events: tuple[ProfilerEvent, ...] = ()
    """In nanoseconds of `time.perf_counter_ns`."""
    markers: list[Marker] = field(default_factory=list)


@contextmanager
def run_profiler(name: str, *, with_cuda: bool) -> Iterator[Profile]:
    """Profile what runs inside, shapes and memory too.

    Raises:
        FormatError: the profiler wrote what cannot be read.
        StorageError: the disk for temporary files is full.
    """
    import torch
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if with_cuda else [])]
    profile = Profile()
    with torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        profile.markers += (_mark(number) for number in range(_MARKS))
        yield profile
        if with_cuda:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder, storage_errors(Path(folder)):
        path = Path(folder) / f"profile{SUFFIX}"
        profiler.export_chrome_trace(str(path))
        profile.document = path.read_bytes().replace(str(path).encode(), name.encode())
    profile.events = read_events(_load(profile.document), profile.markers)


def read_events(document: Mapping[str, Any], markers: Iterable[Marker]) -> tuple[ProfilerEvent, ...]:
    """Read what has a place in a timeline, on our clock, which the markers tell.

    Raises:
        FormatError: a marker is missing, so that nobody knows how the clocks differ.
    """
    spans = [each for each in document["traceEvents"] if each.get("ph") == "X" and each.get("cat") in _ROLES]
    offset = _find_offset(spans, markers)
    return tuple(_read_event(each, offset) for each in spans if not each["name"].startswith(_MARK))


def _mark(number: int) -> Marker:
    import torch

    name = f"{_MARK} {number}"
    after = time.perf_counter_ns()
    with torch.profiler.record_function(name):
        before = time.perf_counter_ns()
    return Marker(name=name, after_ns=after, before_ns=before)


def _load(document: bytes) -> Mapping[str, Any]:
    try:
        loaded: Mapping[str, Any] = json.loads(document)
    except ValueError as error:
        raise FormatError(
            f"torch's profile is no JSON: {error}", where="torch.profiler", todo="leave --profiler out"
        ) from error
    return loaded


def _find_offset(spans: Iterable[Mapping[str, Any]], markers: Iterable[Marker]) -> int:
    """Find what to add to the profile's nanoseconds: in the middle of what all markers leave open."""
    starts = {each["name"]: _nanoseconds(each["ts"]) for each in spans if each["cat"] == "user_annotation"}
    seen = [(starts[marker.name], marker) for marker in markers if marker.name in starts]
    if not seen:
        raise FormatError("torch's profile has none of our marks", where="torch.profiler", todo="leave --profiler out")
    least = max(marker.after_ns - start for start, marker in seen)
    most = min(marker.before_ns - start for start, marker in seen)
    return (least + most) // 2


def _nanoseconds(microseconds: float) -> int:
    return round(microseconds * 1000)


def _read_event(event: Mapping[str, Any], offset: int) -> ProfilerEvent:
    start, arguments = _nanoseconds(event["ts"]) + offset, event.get("args", {})
    return ProfilerEvent(
        role=_ROLES[event["cat"]],
        name=str(event["name"]),
        start_ns=start,
        end_ns=start + _nanoseconds(event.get("dur", 0)),
        correlation=int(arguments.get("correlation", 0)),
        operation=int(arguments.get("External id", 0)),
        device=int(arguments.get("device", 0)),
        stream=int(arguments.get("stream", 0)),
        details={name: _read_value(arguments[name]) for name in _DETAILS if name in arguments},
    )


def _read_value(value: Any) -> Value:
    return value if isinstance(value, (str, bool, int, float)) else str(value)
