from __future__ import annotations

from typing import Any

import pytest
import torch

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.observe import observe
from fib_tools.capture.forward.padding import leave_padding_out
from fib_tools.capture.forward.watch import Watch
from tiny_forward import ARCHITECTURES, make_model, make_prompt


def run(kind: str, *batches: tuple[int, ...]) -> Watch:
    """Run a prefill of each batch, all rows of which are given logits."""
    model: Any = make_model(kind)
    with observe(model) as watch, torch.no_grad():
        for lengths in batches:
            model(**make_prompt(lengths))
    return watch


def prefill(rows: tuple[int, int], tokens: int) -> Call:
    """Make a call of attention over a batch of this size."""
    given = {"qo_indptr": (0, tokens)}
    return Call(kernel="gqa_ragged_prefill", parameters={}, axes={"len_indptr": 3}, given=given, rows=rows)


def list_rows(watch: Watch, kernel: str) -> list[tuple[int, int]]:
    """List the lengths of a kernel's first axis, each with its count."""
    calls = [(tally.call, tally.count) for tally in watch.tallies if isinstance(tally.call, Call)]
    return [(next(iter(call.axes.values())), count) for call, count in calls if call.kernel == kernel]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_padding_is_no_row_of_anything(kind: str) -> None:
    for tally in run(kind, (12, 8)).tallies:
        assert isinstance(tally.call, Call)
        assert tally.call.rows == ()
        length = next(iter(tally.call.axes.values()))
        # attention has three offsets of two sequences; a norm over heads has rows for each of them
        assert length == 3 if "qo_indptr" in tally.call.given else length % 20 == 0, tally.call


def test_batches_of_one_size_are_told_apart_as_attention_does() -> None:
    watch = run("llama", (12, 8), (12, 4), (12, 8), (12, 12))
    # in each of two layers
    assert sorted(list_rows(watch, "silu")) == [(16, 2), (20, 4), (24, 2)]
    assert sorted(list_rows(watch, "embedding")) == [(16, 1), (20, 2), (24, 1)]


def test_rows_that_attention_does_not_tell_about_stay() -> None:
    attention, longer, other = prefill((2, 12), 20), prefill((2, 12), 24), prefill((3, 8), 4)
    image = Call(kernel="gemm", parameters={}, axes={"M": 32}, rows=(2, 16))
    flat = Call(kernel="gemm", parameters={}, axes={"M": 24}, rows=(24,))
    odd = Call(kernel="gemm", parameters={}, axes={"M": 24}, rows=(2, 12))
    missed = Unmapped(what="relu", reason="")

    def settle(*calls: tuple[Call | Unmapped, int]) -> list[tuple[object, int]]:
        return [
            (next(iter(call.axes.values()), 0) if isinstance(call, Call) else call, count)
            for call, count in leave_padding_out(calls)
        ]

    assert settle((attention, 2), (image, 2), (missed, 1)) == [(3, 2), (32, 2), (missed, 1)]
    assert settle((attention, 2), (flat, 1)) == [(3, 2), (20, 1)]
    # 24 rows are those of two batches; three calls are not to be shared out by two
    assert settle((attention, 2), (other, 1), (flat, 1)) == [(3, 2), (3, 1), (24, 1)]
    assert settle((attention, 1), (longer, 1), (odd, 3)) == [(3, 1), (3, 1), (24, 3)]
