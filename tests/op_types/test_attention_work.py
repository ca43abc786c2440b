from __future__ import annotations

from typing import Any

import pytest
import torch

from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import plan_inputs
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.op_types.work import Work, find_work

HEADS = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64}
LATENT = {"num_qo_heads": 4, "head_dim_ckv": 512, "head_dim_kpe": 64, "sm_scale": 0.1}
KEY = 2 * 2 * 64 * 2
"""Bytes of a key and a value of HEADS."""


def _ints(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def _find(kernel_id: str, parameters: dict[str, Any], sizes: dict[str, int], **fixed: Any) -> Work:
    definition = get_kernel_type(kernel_id).build(parameters)
    axes = choose_axes(definition, sizes)
    plan = plan_inputs(definition, axes, seed=0, device="cpu", fixed=fixed)
    return find_work(definition, axes, plan.make(0))


def _decode(**more: Any) -> Work:
    return _find(
        "gqa_paged_decode",
        {**HEADS, "page_size": 16, **more},
        {"batch_size": 3, "num_pages": 30, "num_kv_indices": 4},
        kv_indptr=_ints(0, 2, 2, 4),
        kv_indices=_ints(7, 9, 7, 20),
        kv_last_page_len=_ints(3, 0, 16),
    )


def test_a_shared_page_is_read_once_and_multiplied_twice() -> None:
    assert _decode() == Work(
        read=3 * 8 * 64 * 2 + (16 + 3 + 16) * KEY,
        written=3 * 8 * (64 * 2 + 4),
        flops=2 * (19 + 32) * 8 * 128,
        unit="bf16",
    )


def test_a_window_leaves_older_keys_alone() -> None:
    work = _decode(window_left=4)
    assert work.read == 3 * 8 * 64 * 2 + (2 + 3 + 5) * KEY
    assert work.flops == 2 * (5 + 5) * 8 * 128


def test_an_fp8_cache_has_half_the_bytes_and_the_faster_arithmetic() -> None:
    work = _decode(kv_dtype="float8_e4m3fn")
    assert work.read == 3 * 8 * 64 * 2 + (16 + 3 + 16) * KEY // 2
    assert work.unit == "fp8"


def test_sinks_are_read() -> None:
    assert _decode(sinks=True).read == _decode().read + 8 * 4


@pytest.mark.parametrize(
    ("more", "pairs", "keys"),
    [
        ({}, (3 + 4 + 5) + (1 + 2), 5 + 2),
        ({"causal": False}, 3 * 5 + 2 * 2, 5 + 2),
        ({"window_left": 1}, (2 + 2 + 2) + (1 + 2), 4 + 2),
        ({"causal": False, "window_left": 1}, (4 + 3 + 2) + (2 + 2), 4 + 2),
        ({"chunk": 4}, (3 + 4 + 1) + (1 + 2), 5 + 2),
        ({"chunk": 3}, (3 + 1 + 2) + (1 + 2), 5 + 2),
    ],
)
def test_masks_leave_out_the_pairs_that_no_query_sees(more: dict[str, Any], pairs: int, keys: int) -> None:
    work = _find(
        "gqa_ragged_prefill",
        {**HEADS, **more},
        {"total_q": 5, "total_kv": 7, "len_indptr": 3},
        qo_indptr=_ints(0, 3, 5),
        kv_indptr=_ints(0, 5, 7),
    )
    assert work.read == 5 * 8 * 64 * 2 + keys * KEY
    assert work.flops == 2 * pairs * 8 * 128


def test_every_pair_that_a_reference_does_not_mask_is_counted() -> None:
    """The count of pairs is that of the reference: with equal keys, lse is the logarithm of their number."""
    for more in ({}, {"causal": False}, {"window_left": 2}, {"chunk": 4}, {"chunk": 4, "causal": False}):
        definition = get_kernel_type("gqa_ragged_prefill").build({**HEADS, **more})
        axes = choose_axes(definition, {"total_q": 9, "total_kv": 23, "len_indptr": 4})
        inputs = plan_inputs(definition, axes, seed=5, device="cpu").make(0)
        namespace: dict[str, Any] = {}
        exec(definition.reference, namespace)  # noqa: S102  # our own reference
        _, lse = namespace["run"](**{**inputs, "q": torch.zeros_like(inputs["q"])})
        seen = torch.exp2(lse[:, 0]).sum().round().item()
        assert find_work(definition, axes, inputs).flops == 2 * seen * 8 * 128, more


def test_queries_before_the_first_key_see_nothing() -> None:
    work = _find(
        "gqa_paged_prefill",
        {**HEADS, "page_size": 1},
        {"total_q": 4, "len_indptr": 2, "num_kv_indices": 2, "num_pages": 9},
        qo_indptr=_ints(0, 4),
        kv_indptr=_ints(0, 2),
        kv_indices=_ints(3, 8),
    )
    assert work.flops == 2 * (1 + 2) * 8 * 128
    assert work.read == 4 * 8 * 64 * 2 + 2 * KEY


def test_latents_are_keys_and_values_at_once() -> None:
    work = _find(
        "mla_paged_decode",
        {**LATENT, "page_size": 1},
        {"batch_size": 2, "num_pages": 30, "num_kv_indices": 5},
        kv_indptr=_ints(0, 2, 5),
        kv_indices=_ints(1, 2, 3, 4, 5),
    )
    assert work == Work(
        read=2 * 4 * 576 * 2 + 5 * 576 * 2,
        written=2 * 4 * (512 * 2 + 4),
        flops=2 * 5 * 4 * (576 + 512),
        unit="bf16",
    )


def test_expanded_latents_have_two_widths() -> None:
    work = _find(
        "mla_ragged_prefill",
        {"num_qo_heads": 4},
        {"total_q": 3, "total_kv": 3, "len_indptr": 2},
        qo_indptr=_ints(0, 3),
        kv_indptr=_ints(0, 3),
    )
    assert work.flops == 2 * 6 * 4 * (192 + 128)
    assert work.read == 3 * 4 * 2 * (192 + 192 + 128)


def test_a_mask_that_is_not_understood_leaves_the_cache_out() -> None:
    definition = get_kernel_type("gqa_ragged_prefill").build(HEADS)
    changed = definition.model_copy(update={"reference": definition.reference + "\n# a sliding_window of queries\n"})
    axes = choose_axes(changed)
    inputs = plan_inputs(changed, axes, seed=0, device="cpu").make(0)
    work = find_work(changed, axes, inputs)
    assert work.read == axes["total_q"] * 8 * 64 * 2
    assert work.flops == 0
