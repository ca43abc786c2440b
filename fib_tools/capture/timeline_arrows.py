"""Which span hands on to which: data from its producer to its consumers, work from the host to a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fib_tools.capture.timeline import HOST, Span, TensorNote, Timeline
from fib_tools.model.base import Model, NonNegative

__all__ = ["Arrow", "find_arrows"]


class Arrow(Model):
    """From one span to a later one."""

    source: NonNegative
    target: NonNegative


def find_arrows(timeline: Timeline) -> tuple[Arrow, ...]:
    """Find what flows, in order of where it arrives.

    Data goes from the span that last wrote a storage to each span that then reads it.
    Of spans inside each other that note the same storage only the innermost counts: it did the work.
    A launch goes from a span to its children on another track.
    """
    spans = timeline.spans
    reads = _keep_innermost(spans, [_keys(span, span.inputs) for span in spans])
    writes = _keep_innermost(spans, [_keys(span, span.outputs) for span in spans])
    written: dict[int, list[int]] = {}
    arrows: list[Arrow] = []
    for index, span in enumerate(spans):
        sources = {writer for key in reads[index] for writer in _find_writer(spans, written.get(key, ()), index)}
        if span.parent is not None and spans[span.parent].track_name != span.track_name:
            sources.add(span.parent)
        arrows += [Arrow(source=source, target=index) for source in sorted(sources)]
        for key in writes[index]:
            written.setdefault(key, []).append(index)
    return tuple(arrows)


def _keys(span: Span, notes: Iterable[TensorNote]) -> set[int]:
    """List the storages; none for a device, whose order in time says nothing about what the host has handed on."""
    return {note.key for note in notes if note.key is not None} if span.track_name == HOST else set()


def _keep_innermost(spans: Sequence[Span], keys: Sequence[set[int]]) -> list[set[int]]:
    """Take from each span the keys that a span inside it notes too."""
    inside: list[set[int]] = [set() for _ in spans]
    for index in range(len(spans) - 1, -1, -1):
        parent = spans[index].parent
        if parent is not None:
            inside[parent] |= keys[index] | inside[index]
    return [own - deeper for own, deeper in zip(keys, inside, strict=True)]


def _find_writer(spans: Sequence[Span], writers: Sequence[int], reader: int) -> Iterator[int]:
    """Find the last that was done before the reader began; what the reader is a part of never was."""
    start = spans[reader].start_ns
    for writer in reversed(writers):
        if spans[writer].end_ns <= start and not _is_part_of(spans, reader, writer):
            yield writer
            return


def _is_part_of(spans: Sequence[Span], index: int, whole: int) -> bool:
    parent = spans[index].parent
    while parent is not None and parent != whole:
        parent = spans[parent].parent
    return parent is not None
