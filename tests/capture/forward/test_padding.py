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
    sizes: Any = {"parameters": {}, "axes": {"len_indptr": 3}, "given": given}
    return Call(kernel="gqa_ragged_prefill", **sizes, rows=rows, starts={rows: (0, tokens)})


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


def test_attention_that_is_no_kernel_tells_of_padding_too() -> None:
    model: Any = make_model("llama")
    prompt = make_prompt((12, 8))
    padded = prompt["attention_mask"].bool()[:, None, None, :]
    mask = padded & torch.ones(12, 12, dtype=torch.bool).tril()
    mask[:, :, 11, 9] = False
    with observe(model) as watch, torch.no_grad():
        model(input_ids=prompt["input_ids"], attention_mask=mask)
    (missed,) = [tally.call for tally in watch.tallies if isinstance(tally.call, Unmapped)]
    assert (missed.what, missed.starts) == ("attention", {})
    assert list_rows(watch, "silu") == [(20, 2)]


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


def test_rows_that_may_be_padding_say_so() -> None:
    attention, longer = prefill((2, 12), 20), prefill((2, 12), 24)
    odd = Call(kernel="gemm", parameters={}, axes={"M": 24}, rows=(2, 12))
    part = Call(kernel="gemm", parameters={}, axes={"M": 7}, rows=(7,))
    last = Call(kernel="gemm", parameters={}, axes={"M": 2}, rows=(2, 1))
    image = Call(kernel="gemm", parameters={}, axes={"M": 48}, rows=(3, 16))

    def keep(*calls: tuple[Call, int]) -> list[tuple[int, ...]]:
        return [call.rows for call, _ in leave_padding_out(calls) if isinstance(call, Call)]

    assert keep((attention, 1), (longer, 1), (odd, 3)) == [(), (), (2, 12)]
    assert keep((attention, 1), (part, 1), (last, 1), (image, 1)) == [(), (7,), (), ()]
    assert keep((longer, 1), (part, 1), (last, 1)) == [(), (), ()]


def forward(model: Any, lengths: tuple[int, ...], **options: Any) -> None:
    with torch.no_grad():
        model(**make_prompt(lengths), **options)


def test_padding_of_one_model_is_none_of_another() -> None:
    padded, plain = make_model("llama"), make_model("qwen3")
    with observe(padded, plain) as watch:
        forward(padded, (12, 8))
        forward(plain, (12, 12))
        forward(plain, (12, 12))
    # qwen3 alone has norms of 4 and of 2 heads, in two layers
    norms = [tally for tally in watch.tallies if isinstance(tally.call, Call) and tally.call.kernel == "rmsnorm"]
    heads = [(tally.call.axes, tally.count) for tally in norms if tally.call.parameters["hidden_size"] == 16]
    assert heads == [({"batch_size": 4 * 24}, 4), ({"batch_size": 2 * 24}, 4)]
    assert list_rows(watch, "silu") == [(20, 2), (24, 4)]
    assert list_rows(watch, "embedding") == [(20, 1), (24, 2)]


def test_padding_of_models_that_are_made_meanwhile_is_told_apart() -> None:
    with observe(new_ones=True) as watch:
        padded, plain = make_model("llama"), make_model("qwen3")
        forward(padded, (12, 8))
        forward(plain, (12, 12))
    assert list_rows(watch, "silu") == [(20, 2), (24, 2)]
    assert list_rows(watch, "fused_add_rmsnorm") == [(20, 4), (24, 4)]


def test_a_pass_that_fails_changes_nothing_of_others() -> None:
    model: Any = make_model("llama")
    last = model.model.layers[1].mlp
    with observe(model) as watch:
        forward(model, (12, 8))
        handle = last.register_forward_pre_hook(lambda *_: {}["no"])
        with pytest.raises(KeyError):
            forward(model, (12, 12))
        handle.remove()
        forward(model, (12, 8))
    assert list_rows(watch, "gqa_ragged_prefill") == [(3, 4), (3, 2)]
    assert list_rows(watch, "silu") == [(20, 4), (24, 1)]
    assert list_rows(watch, "fused_add_rmsnorm") == [(20, 8), (24, 3)]


def test_padding_of_what_is_cached_is_no_row_either() -> None:
    model: Any = make_model("deepseek_v3")
    with observe(model) as watch, torch.no_grad():
        model.generate(**make_prompt((12, 8)), max_new_tokens=3, do_sample=False)
    products = [tally for tally in watch.tallies if isinstance(tally.call, Call) and tally.call.kernel == "gemm"]
    rows = {tally.call.axes["M"] for tally in products if tally.call.parameters["k"] == 32}
    assert {20, 22, 24} <= rows
    assert not {24 + 2, 24 + 4} & rows
    assert all(isinstance(tally.call, Call) and tally.call.rows == () for tally in watch.tallies)
