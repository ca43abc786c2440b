"""Rows that stand for padding: attention knows them by its masks, and a serving engine has none.

What is computed row by row is counted with as many rows as attention over the same batch had tokens. Where batches of one
size had different lengths, calls are shared out as those of attention are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from fib_tools.capture.forward.call import Call, Unmapped

__all__ = ["Counted", "leave_padding_out"]

Counted = tuple[Call | Unmapped, int]
"""A kind of call, and how often it was made."""
_SEQUENCES = frozenset({"cu_seqlens", "query_start_loc"})
"""Inputs of kernels that run along each sequence: where they start, and the total."""
_Starts = Mapping[tuple[int, ...], Counter[tuple[int, ...]]]
"""By the size of a batch, where its sequences start without padding, as often as attention had them so."""


def leave_padding_out(calls: Sequence[Counted]) -> Iterator[Counted]:
    """Count rows as attention does; calls that no attention tells about stay as they are."""
    starts = _list_starts(calls)
    for call, count in calls:
        if isinstance(call, Unmapped) or not call.rows:
            yield call, count
        elif _SEQUENCES & call.given.keys():
            yield from _share_sequences(call, count, starts)
        else:
            yield from _share_out(call, count, starts)


def _list_starts(calls: Iterable[Counted]) -> _Starts:
    found: dict[tuple[int, ...], Counter[tuple[int, ...]]] = {}
    for call, count in calls:
        if isinstance(call, Call) and call.rows and "qo_indptr" in call.given:
            starts = tuple(int(start) for start in call.given["qo_indptr"])
            found.setdefault(call.rows, Counter())[starts] += count
    return found


def _share_sequences(call: Call, count: int, starts: _Starts) -> Iterator[Counted]:
    """Give a kernel that runs along sequences those that attention had."""
    plain = replace(call, rows=())
    known = starts.get(call.rows, Counter[tuple[int, ...]]())
    total = known.total()
    if starts and not total:  # what came before was put in front of them, for instance
        reason = "attention has no batch of this size, so that it is not known where sequences begin"
        yield Unmapped(what=call.kernel, kernel=call.kernel, reason=reason, shapes=(call.rows,)), count
        return
    if not total or any(count * each % total for each in known.values()):
        yield plain, count
        return
    (name,), axis = _SEQUENCES & call.given.keys(), next(iter(call.axes))
    for each, times in known.items():
        own = replace(plain, axes={**call.axes, axis: each[-1]}, given={**call.given, name: each})
        yield own, count * times // total


def _share_out(call: Call, count: int, starts: _Starts) -> Iterator[Counted]:
    plain = replace(call, rows=())
    batch = None if "qo_indptr" in call.given else _find_batch(call.rows, starts)
    tokens = Counter[int]()
    for sequences, times in starts.get(batch or (), Counter[tuple[int, ...]]()).items():
        tokens[sequences[-1]] += times
    padded = math.prod(batch or ())
    axis, length = next(iter(call.axes.items()))
    calls = tokens.total()
    is_sharing = calls and all(total and count * each % calls == 0 for total, each in tokens.items())
    if not is_sharing or length % padded:
        yield plain, count
        return
    for total, each in tokens.items():
        yield replace(plain, axes={**call.axes, axis: length // padded * total}), count * each // calls


def _find_batch(rows: tuple[int, ...], starts: _Starts) -> tuple[int, ...] | None:
    """Find the batch that rows are of; where they are flat, by its size if there is one such only."""
    for length in rows[1:]:
        if (rows[0], length) in starts:
            return rows[0], length
    found = [batch for batch in starts if math.prod(batch) == rows[0]]
    return found[0] if len(found) == 1 else None
