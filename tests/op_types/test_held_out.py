from __future__ import annotations

import pytest

from fib_tools.model.definition import AxisConst, AxisVar, Definition
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.held_out import choose_held_out_axes
from fib_tools.op_types.inputs import plan_inputs
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.op_types.sizes import choose_test_axes
from kernel_examples import KERNEL_EXAMPLES


def _definition(kernel_id: str) -> Definition:
    return get_kernel_type(kernel_id).build(KERNEL_EXAMPLES[kernel_id])


@pytest.mark.parametrize("kernel_id", list(KERNEL_EXAMPLES))
def test_inputs_can_be_made_for_other_lengths_of_every_kernel(kernel_id: str) -> None:
    definition = _definition(kernel_id)
    for axes in (choose_axes(definition), choose_test_axes(definition, "medium")):
        own = {name: axes[name] for name in definition.var_axes}
        for seed in range(4):
            found = choose_held_out_axes(definition, axes, seed)
            assert list(found) == list(definition.var_axes)
            assert found != own
            plan_inputs(definition, choose_axes(definition, found), seed=seed, device="cpu")


def test_the_seed_decides() -> None:
    definition = _definition("gqa_paged_decode")
    axes = choose_test_axes(definition, "large")
    chosen = [choose_held_out_axes(definition, axes, seed) for seed in (1, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len({tuple(lengths.values()) for lengths in chosen}) == 3


@pytest.mark.parametrize("batch", [1, 2, 8, 64, 4096, 16384])
def test_lengths_are_near_and_no_multiples_of_eight(batch: int) -> None:
    definition = _definition("rmsnorm")
    for seed in range(20):
        length = choose_held_out_axes(definition, {"batch_size": batch}, seed)["batch_size"]
        assert length % 8
        assert length != batch
        assert min(0.7 * batch - 2, 1) <= length <= max(batch, 4)


def test_what_is_no_longer_than_another_stays_so() -> None:
    definition = _definition("mla_paged_prefill")
    axes = {"total_q": 40, "batch_size": 7, "num_pages": 64, "len_indptr": 8, "num_kv_indices": 64}
    for seed in range(20):
        found = choose_held_out_axes(definition, axes, seed)
        assert found["len_indptr"] == found["batch_size"] + 1
        assert found["batch_size"] <= found["total_q"]
        assert found["num_kv_indices"] <= found["num_pages"]
        assert found["num_kv_indices"] >= found["total_q"] // 16 + found["batch_size"]


def test_pages_hold_the_tokens_to_append() -> None:
    definition = _definition("append_paged_kv_cache")
    axes = {"nnz_kv": 2048, "batch_size": 2, "num_pages": 128, "len_indptr": 3, "num_kv_indices": 128}
    for seed in range(20):
        found = choose_held_out_axes(definition, axes, seed)
        plan_inputs(definition, choose_axes(definition, found), seed=seed, device="cpu")


def test_without_other_lengths_the_workloads_own_come_back() -> None:
    definition = Definition(
        name="fixed",
        op_type="unheard_of",
        axes={"one": AxisConst(value=1), "rows": AxisVar()},
        constraints=["rows == one"],
        inputs={},
        outputs={},
        reference="def run():\n    pass\n",
    )
    assert choose_held_out_axes(definition, {"rows": 1}, 0) == {"rows": 1}
