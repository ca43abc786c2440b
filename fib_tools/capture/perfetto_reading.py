"""Our own Perfetto traces, read back: what `perfetto.write_trace` wrote, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fib_tools.capture.perfetto import ABOUT_CATEGORY
from fib_tools.capture.perfetto_packets import CLOCKS, PROCESS, UNITS, import_messages
from fib_tools.capture.timeline import DEVICE, HOST, Timeline
from fib_tools.errors import FormatError
from fib_tools.host.files import read_limited
from fib_tools.model.base import read_strict

__all__ = ["parse_trace", "read_trace"]

_LIMIT = 256 << 20
_TODO = "pass a trace that fib-tools wrote"


def read_trace(path: Path) -> Timeline:
    """Read a file that `write_trace` wrote.

    Raises:
        FormatError: it is not such a file.
        MissingDependencyError: the package perfetto is not installed.
    """
    return parse_trace(read_limited(path, _LIMIT), where=str(path))


def parse_trace(data: bytes, *, where: str) -> Timeline:
    """Parse what `format_trace` formatted; the timeline is the same again.

    Raises:
        FormatError: another tool wrote it, or it is damaged.
        MissingDependencyError: the package perfetto is not installed.
    """
    from google.protobuf.message import DecodeError

    messages = import_messages()
    try:
        reader = _Reader(messages.Trace.FromString(data).packet, messages)
    except (DecodeError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"not a trace of ours: {error!r}", where=where, todo=_TODO) from error
    return read_strict(Timeline, reader.document, where=where)


class _Reader:
    """Goes through the packets once."""

    def __init__(self, packets: Iterable[Any], messages: Any) -> None:
        self._event = messages.TrackEvent
        self._units = {getattr(messages.CounterDescriptor, value): unit for unit, value in UNITS.items()}
        self._names: dict[tuple[str, int], str] = {}
        self._threads: dict[int, str] = {}
        self._counters: dict[int, dict[str, Any]] = {}
        self._stacks: dict[int, list[int]] = {}
        self._sources: dict[int, tuple[int, int]] = {}
        self._default_track = 0
        self._spans: list[dict[str, Any]] = []
        self.document: dict[str, Any] = {"spans": self._spans}
        for packet in packets:
            self._read_packet(packet)
        self.document["counters"] = list(self._counters.values())

    def _read_packet(self, packet: Any) -> None:
        if packet.HasField("clock_snapshot"):
            clocks = {number: name for name, number in CLOCKS.items()}
            self.document["clock"] = clocks[packet.clock_snapshot.primary_trace_clock]
            self._default_track = packet.trace_packet_defaults.track_event_defaults.track_uuid
        if packet.HasField("interned_data"):
            for field, entries in packet.interned_data.ListFields():
                self._names.update({(field.name, entry.iid): entry.name for entry in entries})
        if packet.HasField("track_descriptor"):
            self._read_track(packet.track_descriptor)
        if packet.HasField("track_event"):
            self._read_event(packet.timestamp, packet.track_event)

    def _read_track(self, track: Any) -> None:
        if track.uuid == PROCESS:
            self.document["name"] = track.process.process_name
        elif track.HasField("counter"):
            unit = track.counter.unit_name or self._units[track.counter.unit]
            name = track.name.removesuffix(f" ({unit})") if track.counter.unit_name else track.name
            self._counters[track.uuid] = {"name": name, "unit": unit, "points": []}
        else:
            self._threads[track.uuid] = track.thread.thread_name

    def _read_event(self, moment: int, event: Any) -> None:
        track = event.track_uuid or self._default_track
        if event.type == self._event.TYPE_COUNTER:
            value = event.double_counter_value if event.HasField("double_counter_value") else event.counter_value
            self._counters[track]["points"].append((moment, value))
        elif event.type == self._event.TYPE_SLICE_BEGIN:
            self._begin(moment, event, track)
        elif event.type == self._event.TYPE_SLICE_END:
            self._spans[self._stacks[track].pop()]["end_ns"] = moment
        elif self._names["event_categories", event.category_iids[0]] == ABOUT_CATEGORY:
            self.document["details"] = self._read_values(event.debug_annotations)

    def _begin(self, moment: int, event: Any, track: int) -> None:
        values = self._read_values(event.debug_annotations)
        stack = self._stacks.setdefault(track, [])
        kind, name = values.pop("kind"), self._threads[track]
        inputs, outputs = (self._read_tensors(values.pop(field, {})) for field in ("inputs", "outputs"))
        self._spans.append(
            {
                "name": self._names["event_names", event.name_iid],
                "kind": kind,
                "track": "" if name == (DEVICE if kind == "kernel" else HOST) else name,
                "start_ns": moment,
                "parent": stack[-1] if stack else self._find_launch(event, track),
                "inputs": inputs,
                "outputs": outputs,
                "details": values,
            }
        )
        stack.append(len(self._spans) - 1)
        self._sources.update(dict.fromkeys(event.flow_ids, (len(self._spans) - 1, track)))

    def _find_launch(self, event: Any, track: int) -> int | None:
        """Find the parent of what stands on another track: only a launch crosses from one to another."""
        sources = (self._sources[flow] for flow in event.terminating_flow_ids)
        return next((source for source, from_track in sources if from_track != track), None)

    def _read_values(self, annotations: Iterable[Any]) -> dict[str, Any]:
        return {self._names["debug_annotation_names", each.name_iid]: self._read_value(each) for each in annotations}

    def _read_value(self, annotation: Any) -> Any:
        field = annotation.WhichOneof("value")
        return self._read_values(annotation.dict_entries) if field is None else getattr(annotation, field)

    @staticmethod
    def _read_tensors(tensors: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        lengths = ("shape", "strides")
        return [
            {
                "name": name,
                "key": fields.pop("storage", None),
                **{field: json.loads(value) if field in lengths else value for field, value in fields.items()},
            }
            for name, fields in tensors.items()
        ]
