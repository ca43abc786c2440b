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
_Totals = Mapping[tuple[int, ...], Counter[int]]
"""By the size of a batch, its tokens without padding, each as often as attention had them."""


def leave_padding_out(calls: Sequence[Counted]) -> Iterator[Counted]:
    """Count rows as attention does; calls that no attention tells about stay as they are."""
    totals = _list_totals(calls)
    for call, count in calls:
        if isinstance(call, Unmapped) or not call.rows:
            yield call, count
        else:
            yield from _share_out(call, count, totals)


def _list_totals(calls: Iterable[Counted]) -> _Totals:
    found: dict[tuple[int, ...], Counter[int]] = {}
    for call, count in calls:
        if isinstance(call, Call) and call.rows and "qo_indptr" in call.given:
            found.setdefault(call.rows, Counter())[int(call.given["qo_indptr"][-1])] += count
    return found


def _share_out(call: Call, count: int, totals: _Totals) -> Iterator[Counted]:
    plain = replace(call, rows=())
    batch = None if "qo_indptr" in call.given else _find_batch(call.rows, totals)
    tokens = Counter[int]() if batch is None else totals[batch]
    padded = math.prod(batch or ())
    axis, length = next(iter(call.axes.items()))
    calls = tokens.total()
    is_sharing = calls and all(total and count * each % calls == 0 for total, each in tokens.items())
    if not is_sharing or length % padded:
        yield plain, count
        return
    for total, each in tokens.items():
        yield replace(plain, axes={**call.axes, axis: length // padded * total}), count * each // calls


def _find_batch(rows: tuple[int, ...], totals: _Totals) -> tuple[int, ...] | None:
    """Find the batch that rows are of; where they are flat, by its size if there is one such only."""
    for length in rows[1:]:
        if (rows[0], length) in totals:
            return rows[0], length
    found = [batch for batch in totals if math.prod(batch) == rows[0]]
    return found[0] if len(found) == 1 else None
