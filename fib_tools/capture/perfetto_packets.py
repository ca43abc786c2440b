"""The packets of a Perfetto trace: one process, its threads and counters, events with names that are interned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from fib_tools.capture.timeline import Clock, Counter, TensorNote, Value
from fib_tools.errors import MissingDependencyError

__all__ = ["CLOCKS", "PROCESS", "UNITS", "Packets", "import_messages"]

CLOCKS: Mapping[Clock, int] = {"realtime": 1, "monotonic": 3, "boottime": 6}
"""Perfetto's numbers of them."""
UNITS = {"bytes": "UNIT_SIZE_BYTES", "ns": "UNIT_TIME_NS", "": "UNIT_COUNT"}
"""The units it knows by itself."""
PROCESS = 1
"""The process's number and the uuid of its track."""

_SEQUENCE = 1
_VALUE_FIELDS = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}


def import_messages() -> ModuleType:
    """Import Perfetto's messages, which are an extra.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except ImportError as error:
        install = "pip install 'fib-tools[trace]'"
        raise MissingDependencyError("perfetto", purpose="a Perfetto trace", install=install) from error
    module: ModuleType = perfetto_trace_pb2
    return module


class Packets:
    """One sequence of packets, and the names it has interned."""

    def __init__(self, *, clock: Clock, start_ns: int, default_track: int) -> None:
        """Begin the sequence: names are new, times count as `clock` does, events stand on the default track."""
        self._messages = import_messages()
        self._trace = self._messages.Trace()
        self._default_track = default_track
        self._ids: dict[str, dict[str, int]] = {}
        packet = self._trace.packet.add(trusted_packet_sequence_id=_SEQUENCE)
        packet.sequence_flags = self._messages.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        packet.trace_packet_defaults.timestamp_clock_id = CLOCKS[clock]
        packet.trace_packet_defaults.track_event_defaults.track_uuid = default_track
        packet.clock_snapshot.primary_trace_clock = CLOCKS[clock]
        packet.clock_snapshot.clocks.add(clock_id=CLOCKS[clock], timestamp=start_ns)

    def serialize(self) -> bytes:
        """Take the bytes of everything so far."""
        return bytes(self._trace.SerializeToString(deterministic=True))

    def _add(self) -> Any:
        packet = self._trace.packet.add(trusted_packet_sequence_id=_SEQUENCE)
        packet.sequence_flags = self._messages.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        return packet

    def _add_track(self, uuid: int) -> Any:
        track = self._add().track_descriptor
        track.uuid = uuid
        if uuid != PROCESS:
            track.parent_uuid = PROCESS
        return track

    def add_process(self, name: str) -> None:
        """Name the process."""
        process = self._add_track(PROCESS).process
        process.pid = PROCESS
        process.process_name = name

    def add_thread(self, uuid: int, name: str) -> None:
        """Name a thread; the first one given is the process's main thread."""
        thread = self._add_track(uuid).thread
        thread.pid = PROCESS
        thread.tid = PROCESS + uuid - self._default_track
        thread.thread_name = name

    def add_counter(self, uuid: int, counter: Counter) -> None:
        """Name a counter, with its unit where every version of Perfetto shows it."""
        track = self._add_track(uuid)
        track.name = counter.name
        if counter.unit in UNITS:
            track.counter.unit = getattr(self._messages.CounterDescriptor, UNITS[counter.unit])
        else:
            track.name += f" ({counter.unit})"
            track.counter.unit_name = counter.unit

    def add_event(self, kind: str, moment_ns: int, track: int) -> Any:
        """Add an event, such as TYPE_SLICE_BEGIN; returns its packet."""
        packet = self._add()
        packet.timestamp = moment_ns
        packet.track_event.type = getattr(self._messages.TrackEvent, kind)
        if track != self._default_track:
            packet.track_event.track_uuid = track
        return packet

    def label(self, packet: Any, name: str, category: str) -> None:
        """Give an event its name and category."""
        packet.track_event.name_iid = self._intern(packet, "event_names", name)
        packet.track_event.category_iids.append(self._intern(packet, "event_categories", category))

    def annotate(self, packet: Any, values: Mapping[str, Value]) -> None:
        """Add typed values to an event."""
        self._fill(packet, packet.track_event.debug_annotations, values)

    def annotate_tensors(self, packet: Any, name: str, notes: Iterable[TensorNote]) -> None:
        """Add a dictionary of tensors to an event."""
        annotations = packet.track_event.debug_annotations
        entries = annotations.add(name_iid=self._intern(packet, "debug_annotation_names", name)).dict_entries
        for note in notes:
            entry = entries.add(name_iid=self._intern(packet, "debug_annotation_names", note.name))
            self._fill(packet, entry.dict_entries, _describe_tensor(note))

    def _fill(self, packet: Any, entries: Any, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            entry = entries.add(name_iid=self._intern(packet, "debug_annotation_names", name))
            setattr(entry, _VALUE_FIELDS[type(value)], value)

    def _intern(self, packet: Any, table: str, text: str) -> int:
        ids = self._ids.setdefault(table, {})
        if text not in ids:
            ids[text] = len(ids) + 1
            getattr(packet.interned_data, table).add(iid=ids[text], name=text)
        return ids[text]


def _describe_tensor(note: TensorNote) -> dict[str, Value]:
    shape, strides = str(list(note.shape)), str(list(note.strides))
    described: dict[str, Value] = {"dtype": note.dtype, "shape": shape, "strides": strides, "bytes": note.bytes}
    return described if note.key is None else {**described, "storage": note.key}
