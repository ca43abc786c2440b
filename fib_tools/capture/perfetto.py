"""A timeline as Perfetto's own protobuf: drop the file on ui.perfetto.dev, or ask trace_processor about it in SQL.

One process; a thread for the host and one for each device and stream; a slice for each span, its kind as the category:

    op_type: gemm
    flops: 33554432
    inputs:  { x: { dtype: bfloat16, shape: [1, 16, 1024], strides: [16384, 1024, 1], bytes: 32768, storage: 7 } }

Lengths and strides are text, so that a tensor takes one line each in the panel; what one computes with is a number.
Names are interned, values are not: Perfetto of 2021 would not show them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fib_tools.capture.perfetto_packets import PROCESS, Packets
from fib_tools.capture.timeline import HOST, Counter, Span, Timeline, check_nesting, close_until
from fib_tools.capture.timeline_arrows import Arrow, find_arrows
from fib_tools.host.files import write_atomically
from fib_tools.model.base import Model, NonNegative

__all__ = ["ABOUT", "ABOUT_CATEGORY", "WrittenTrace", "format_trace", "write_trace"]

ABOUT = "about this run"
"""The instant on the process's own track that carries the details of the run."""
ABOUT_CATEGORY = "run"

_HOST_TRACK = PROCESS + 1


class WrittenTrace(Model):
    """What was written."""

    path: Path
    slices: NonNegative
    arrows: NonNegative
    bytes: NonNegative


def write_trace(timeline: Timeline, path: Path) -> WrittenTrace:
    """Write the file whole or not at all.

    Raises:
        FormatError: the spans do not nest.
        MissingDependencyError: the package perfetto is not installed.
        StorageError: the disk refused.
    """
    check_nesting(timeline)
    arrows = find_arrows(timeline)
    data = _format(timeline, arrows)
    write_atomically(path, data)
    return WrittenTrace(path=path, slices=len(timeline.spans), arrows=len(arrows), bytes=len(data))


def format_trace(timeline: Timeline) -> bytes:
    """Format the timeline; the same one gives the same bytes.

    Raises:
        FormatError: the spans do not nest.
        MissingDependencyError: the package perfetto is not installed.
    """
    check_nesting(timeline)
    return _format(timeline, find_arrows(timeline))


def _format(timeline: Timeline, arrows: Sequence[Arrow]) -> bytes:
    start = timeline.spans[0].start_ns if timeline.spans else 0
    packets = Packets(clock=timeline.clock, start_ns=start, default_track=_HOST_TRACK)
    names = dict.fromkeys([HOST, *(span.track_name for span in timeline.spans)])
    tracks = {name: uuid for uuid, name in enumerate(names, start=_HOST_TRACK)}
    packets.add_process(timeline.name)
    for name, uuid in tracks.items():
        packets.add_thread(uuid, name)
    if timeline.details:
        about = packets.add_event("TYPE_INSTANT", start, PROCESS)
        packets.label(about, ABOUT, ABOUT_CATEGORY)
        packets.annotate(about, timeline.details)
    _add_spans(packets, timeline.spans, arrows, tracks)
    for uuid, counter in enumerate(timeline.counters, start=_HOST_TRACK + len(tracks)):
        _add_counter(packets, counter, uuid)
    return packets.serialize()


def _add_spans(packets: Packets, spans: Sequence[Span], arrows: Sequence[Arrow], tracks: dict[str, int]) -> None:
    """Begin and end each slice; on a track in the order in which they nest, since a tie in time is kept as it stands."""
    leaving, arriving = _number_flows(arrows)
    stacks: dict[str, list[int]] = {name: [] for name in tracks}
    for index, span in enumerate(spans):
        track = tracks[span.track_name]
        stack = stacks[span.track_name]
        _add_ends(packets, spans, close_until(stack, spans, index), track)
        _add_beginning(packets, span, track, leaving.get(index, ()), arriving.get(index, ()))
        stack.append(index)
    for name, stack in stacks.items():
        _add_ends(packets, spans, reversed(stack), tracks[name])


def _add_ends(packets: Packets, spans: Sequence[Span], indices: Iterable[int], track: int) -> None:
    for index in indices:
        packets.add_event("TYPE_SLICE_END", spans[index].end_ns, track)


def _add_beginning(packets: Packets, span: Span, track: int, leaving: Sequence[int], arriving: Sequence[int]) -> None:
    packet = packets.add_event("TYPE_SLICE_BEGIN", span.start_ns, track)
    packets.label(packet, span.name, span.kind)
    # the numbers twice: Perfetto of 2021 knows the first field only, newer ones prefer the second
    event = packet.track_event
    for field in (event.flow_ids_old, event.flow_ids):
        field.extend(leaving)
    for field in (event.terminating_flow_ids_old, event.terminating_flow_ids):
        field.extend(arriving)
    packets.annotate(packet, {"kind": span.kind, **span.details})
    for name, notes in (("inputs", span.inputs), ("outputs", span.outputs)):
        if notes:
            packets.annotate_tensors(packet, name, notes)


def _add_counter(packets: Packets, counter: Counter, uuid: int) -> None:
    packets.add_counter(uuid, counter)
    for moment, value in counter.points:
        event = packets.add_event("TYPE_COUNTER", moment, uuid).track_event
        if isinstance(value, float):
            event.double_counter_value = value
        else:
            event.counter_value = value


def _number_flows(arrows: Sequence[Arrow]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Give each arrow a number of its own: a flow with two ends; of each span, those that leave and those that arrive."""
    leaving: dict[int, list[int]] = {}
    arriving: dict[int, list[int]] = {}
    for number, arrow in enumerate(arrows, start=1):
        leaving.setdefault(arrow.source, []).append(number)
        arriving.setdefault(arrow.target, []).append(number)
    return leaving, arriving
