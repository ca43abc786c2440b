"""Rows that stand for padding: attention knows them by its masks, and a serving engine has none.

What is computed row by row is counted with as many rows as attention over the same batch had tokens, in the same pass.
Where batches of one size had different lengths there, calls are shared out as those of attention are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from fib_tools.capture.forward.call import Call, Unmapped

__all__ = ["Counted", "leave_padding_out", "tell_starts"]

Counted = tuple[Call | Unmapped, int]
"""A kind of call, and how often it was made."""
_SEQUENCES = frozenset({"cu_seqlens", "query_start_loc"})
"""Inputs of kernels that run along each sequence: where they start, and the total."""
_Starts = Mapping[tuple[int, ...], Counter[tuple[int, ...]]]
"""By the size of a batch, where its sequences start without padding, as often as attention had them so."""


def leave_padding_out(calls: Sequence[Counted]) -> Iterator[Counted]:
    """Count rows as attention does; calls that it does not tell about stay as they are, with `rows` if it had padding."""
    starts = _list_starts(calls)
    for call, count in calls:
        if isinstance(call, Unmapped):
            yield replace(call, starts={}), count
        elif call.starts or not call.rows:
            yield _strip(call), count
        elif _SEQUENCES & call.given.keys():
            yield from _share_sequences(call, count, starts)
        else:
            yield from _share_out(call, count, starts)


def tell_starts(calls: Iterable[Counted]) -> Hashable:
    """Tell apart what attention knows of padding."""
    return frozenset((batch, frozenset(starts.items())) for batch, starts in _list_starts(calls).items())


def _list_starts(calls: Iterable[Counted]) -> _Starts:
    found: dict[tuple[int, ...], Counter[tuple[int, ...]]] = {}
    for call, count in calls:
        for batch, starts in call.starts.items():
            found.setdefault(batch, Counter())[starts] += count
    return found


def _strip(call: Call) -> Call:
    """Let go of what only tells of padding."""
    return replace(call, rows=(), starts={})


def _share_sequences(call: Call, count: int, starts: _Starts) -> Iterator[Counted]:
    """Give a kernel that runs along sequences those that attention had."""
    plain = _strip(call)
    known = starts.get(call.rows, Counter[tuple[int, ...]]())
    total = known.total()
    if starts and not total:  # what came before was put in front of them, for instance
        reason = "attention has no batch of this size, so that it is not known where sequences begin"
        yield Unmapped(what=call.kernel, kernel=call.kernel, reason=reason, shapes=(call.rows,)), count
        return
    if not total or any(count * each % total for each in known.values()):
        yield call if total else plain, count
        return
    (name,), axis = _SEQUENCES & call.given.keys(), next(iter(call.axes))
    for each, times in known.items():
        own = replace(plain, axes={**call.axes, axis: each[-1]}, given={**call.given, name: each})
        yield own, count * times // total


def _share_out(call: Call, count: int, starts: _Starts) -> Iterator[Counted]:
    plain = _strip(call)
    batch = _find_batch(call.rows, starts)
    if batch is None:
        yield call if _may_be_padded(call, starts) else plain, count
        return
    tokens = Counter[int]()
    for sequences, times in starts[batch].items():
        tokens[sequences[-1]] += times
    padded, calls = math.prod(batch), tokens.total()
    axis, length = next(iter(call.axes.items()))
    is_sharing = all(total and count * each % calls == 0 for total, each in tokens.items())
    if not is_sharing or length % padded:
        yield call if tokens.keys() != {padded} else plain, count
        return
    for total, each in tokens.items():
        yield replace(plain, axes={**call.axes, axis: length // padded * total}), count * each // calls


def _find_batch(rows: tuple[int, ...], starts: _Starts) -> tuple[int, ...] | None:
    """Find the batch that rows are of; where they are flat, by its size if there is one such only."""
    for length in sorted(rows[1:], reverse=True):  # one head is no batch of one token
        if (rows[0], length) in starts:
            return rows[0], length
    found = [batch for batch in starts if math.prod(batch) == rows[0]]
    return found[0] if len(found) == 1 else None


def _may_be_padded(call: Call, starts: _Starts) -> bool:
    """Tell whether attention over as many sequences had padding, and rows are not one of each; flat rows may be of any."""
    padded = {batch[0] for batch, known in starts.items() if any(each[-1] < math.prod(batch) for each in known)}
    is_flat = len(call.rows) == 1
    return bool(padded) and math.prod(call.rows) not in padded and (is_flat or call.rows[0] in padded)
