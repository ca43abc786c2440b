from __future__ import annotations

from typing import Any

import pytest

from fib_tools.errors import RequestError
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type

KV = ("append_paged_kv_cache", {"num_kv_heads": 2, "head_dim": 4})
KV_VO = ("append_paged_kv_cache", {"num_kv_heads": 2, "head_dim": 4, "head_dim_vo": 3})
MLA = ("append_paged_mla_kv_cache", {"head_dim_ckv": 8, "head_dim_kpe": 4})


@pytest.mark.parametrize(
    ("kernel_id", "parameters", "name"),
    [
        (*KV, "append_paged_kv_cache_kv2_d4_ps16"),
        (*KV_VO, "append_paged_kv_cache_kv2_d4_vo3_ps16"),
        (KV[0], {**KV[1], "head_dim_vo": 4}, "append_paged_kv_cache_kv2_d4_ps16"),
        (*MLA, "append_paged_mla_kv_cache_ckv8_kpe4_ps16"),
    ],
)
def test_the_name_is_the_canonical_one(kernel_id: str, parameters: dict[str, Any], name: str) -> None:
    assert get_kernel_type(kernel_id).build({**parameters, "page_size": 16}).name == name


def test_inputs_are_in_the_order_of_the_api() -> None:
    definition = get_kernel_type(KV[0]).build({**KV[1], "page_size": 16})
    index = ["kv_indices", "kv_indptr", "kv_last_page_len"]
    rows = ["append_key", "append_value", "batch_indices", "positions"]
    assert list(definition.inputs) == [*rows, "k_cache", "v_cache", *index]
    assert list(definition.outputs) == ["k_cache_output", "v_cache_output"]


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize(("kernel_id", "parameters"), [KV, KV_VO, MLA])
@pytest.mark.parametrize("seed", range(3))
def test_appended_tokens_are_found_where_the_page_table_says(
    kernel_id: str, parameters: dict[str, Any], page_size: int, seed: int
) -> None:
    """Read the sequences back through the page table, as attention does, and compare with concatenation."""
    import torch

    definition = get_kernel_type(kernel_id).build({**parameters, "page_size": page_size})
    inputs = generate_inputs(definition, choose_axes(definition, {"nnz_kv": 9}), seed=seed)
    names = list(inputs)
    before = [inputs[names[4]].clone(), inputs[names[5]].clone()]
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # the reference is what is under test
    outputs = namespace["run"](*inputs.values())
    for which, (output, old) in enumerate(zip(outputs, before, strict=True)):
        rows = inputs[names[which]]
        touched = torch.zeros(old.shape[:2], dtype=torch.bool)
        for sequence in range(3):
            slots = _slots(inputs, sequence, page_size)
            new = rows[inputs["batch_indices"] == sequence]
            kept = slots[: len(slots) - len(new)]
            stored = torch.stack([output[slot] for slot in slots])
            expected = torch.cat([torch.stack([old[slot] for slot in kept]) if kept else new[:0], new])
            assert torch.equal(stored, expected)
            for slot in slots[len(kept) :]:
                touched[slot] = True
        assert touched.sum() == 9
        assert torch.equal(output[~touched], old[~touched])
        assert torch.equal(inputs[names[4 + which]], old)


@pytest.mark.parametrize("seed", range(4))
def test_generated_page_tables_fit_the_appended_tokens(seed: int) -> None:
    definition = get_kernel_type(MLA[0]).build({**MLA[1], "page_size": 4})
    axes = choose_axes(definition, {"nnz_kv": 11, "num_kv_indices": 8, "batch_size": 4})
    inputs = generate_inputs(definition, axes, seed=seed)
    pages, last = inputs["kv_indptr"].diff(), inputs["kv_last_page_len"]
    assert inputs["kv_indptr"][-1] == 8
    for sequence in range(4):
        own = inputs["positions"][inputs["batch_indices"] == sequence].tolist()
        length = int((pages[sequence] - 1) * 4 + last[sequence])
        assert own == list(range(length - len(own), length))


def test_more_sequences_than_tokens_leave_some_without_pages() -> None:
    definition = get_kernel_type(MLA[0]).build({**MLA[1], "page_size": 4})
    inputs = generate_inputs(definition, choose_axes(definition, {"nnz_kv": 2, "num_kv_indices": 5, "batch_size": 6}))
    pages = inputs["kv_indptr"].diff().tolist()
    assert sum(pages) == 5
    assert [length > 0 for length in inputs["kv_last_page_len"].tolist()] == [held > 0 for held in pages]


def test_tokens_that_no_page_holds_are_refused() -> None:
    definition = get_kernel_type(MLA[0]).build({**MLA[1], "page_size": 1})
    axes = choose_axes(definition, {"nnz_kv": 20, "num_kv_indices": 17})
    with pytest.raises(RequestError, match="20 tokens do not fit into 17 pages of 1"):
        generate_inputs(definition, axes)


def _slots(inputs: dict[str, Any], sequence: int, page_size: int) -> list[tuple[int, int]]:
    first, end = inputs["kv_indptr"][sequence : sequence + 2].tolist()
    held = [int(page) for page in inputs["kv_indices"][first:end]]
    length = (len(held) - 1) * page_size + int(inputs["kv_last_page_len"][sequence])
    return [(held[token // page_size], token % page_size) for token in range(length)]
