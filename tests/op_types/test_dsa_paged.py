from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type

ATTENTION = {"num_qo_heads": 3, "head_dim_ckv": 16, "head_dim_kpe": 8, "topk": 6, "sm_scale": 0.2}
INDEXER = {"num_index_heads": 4, "index_head_dim": 8, "topk": 6}


def _run(definition: Any, inputs: dict[str, Any]) -> Any:
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # the reference is what is under test
    return namespace["run"](*inputs.values())


def test_the_names_are_the_canonical_ones() -> None:
    attention = {"num_qo_heads": 16, "topk": 2048, "page_size": 64, "sm_scale": 192**-0.5}
    indexer = {"num_index_heads": 64, "index_head_dim": 128, "topk": 2048, "page_size": 64}
    names = [
        get_kernel_type("dsa_sparse_attention").build(attention).name,
        get_kernel_type("dsa_topk_indexer").build(indexer).name,
    ]
    assert names == [
        "dsa_sparse_attention_h16_ckv512_kpe64_topk2048_ps64",
        "dsa_topk_indexer_fp8_h64_d128_topk2048_ps64",
    ]


def test_the_interfaces_are_those_of_the_dataset() -> None:
    attention = get_kernel_type("dsa_sparse_attention").build({**ATTENTION, "page_size": 64})
    assert list(attention.inputs) == ["q_nope", "q_pe", "ckv_cache", "kpe_cache", "sparse_indices", "sm_scale"]
    assert list(attention.outputs) == ["output", "lse"]
    indexer = get_kernel_type("dsa_topk_indexer").build({**INDEXER, "page_size": 64})
    assert list(indexer.inputs) == ["q_index_fp8", "k_index_cache_fp8", "weights", "seq_lens", "block_table"]
    assert indexer.const_axes["head_dim_with_scale"] == 12


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_sparse_attention_is_dense_attention_under_the_mask_of_the_chosen(page_size: int) -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    definition = get_kernel_type("dsa_sparse_attention").build({**ATTENTION, "page_size": page_size})
    inputs = generate_inputs(definition, choose_axes(definition, {"num_tokens": 7, "num_pages": 9}), seed=4)
    inputs["sparse_indices"][3] = -1
    inputs["sparse_indices"][4] = torch.tensor([-1, 5, -1, 2, 8, -1])
    output, lse = _run(definition, inputs)
    keys = torch.cat([inputs["ckv_cache"], inputs["kpe_cache"]], dim=-1).flatten(0, 1).double()
    query = torch.cat([inputs["q_nope"], inputs["q_pe"]], dim=-1).double().transpose(0, 1)
    seen = torch.zeros(7, len(keys), dtype=torch.bool)
    for token, chosen in enumerate(inputs["sparse_indices"].tolist()):
        seen[token, [slot for slot in chosen if slot >= 0]] = True
    bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    values = inputs["ckv_cache"].flatten(0, 1).double().expand(3, -1, -1)
    shared = keys.expand(3, -1, -1)
    exact = scaled_dot_product_attention(query, shared, values, attn_mask=bias, scale=0.2).nan_to_num(0.0)
    sums = torch.logsumexp(query @ keys.T * 0.2 + bias, dim=-1) / math.log(2)
    assert (output.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output.double(), exact.transpose(0, 1), rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(lse.double(), sums.transpose(0, 1), rtol=1e-5, atol=1e-5)
    assert lse[3].tolist() == [-math.inf] * 3


@pytest.mark.parametrize("page_size", [1, 4, 64])
@pytest.mark.parametrize("seed", range(3))
def test_the_indexer_chooses_the_keys_of_highest_score(page_size: int, seed: int) -> None:
    """Scores are computed key by key from unpacked bytes, and ranked by sorting."""
    definition = get_kernel_type("dsa_topk_indexer").build({**INDEXER, "page_size": page_size})
    columns = {1: 20, 4: 5, 64: 2}[page_size]
    axes = choose_axes(definition, {"max_num_pages": columns, "num_pages": columns + 3, "batch_size": 4})
    inputs = generate_inputs(definition, axes, seed=seed)
    inputs["seq_lens"][1:] = inputs["seq_lens"].new_tensor([0, 3, 17])
    chosen = _run(definition, inputs)
    assert chosen.shape == (4, 6)
    for sequence, length in enumerate(inputs["seq_lens"].tolist()):
        scores = _scores(inputs, sequence, length)
        ranked = sorted(scores, key=scores.__getitem__, reverse=True)[:6]
        row = chosen[sequence].tolist()
        count = min(length, 6)
        assert sorted(row[:count]) == sorted(ranked)
        assert row[count:] == [-1] * (6 - count)


def test_a_negative_dot_product_counts_for_nothing() -> None:
    import torch

    definition = get_kernel_type("dsa_topk_indexer").build(
        {"num_index_heads": 1, "index_head_dim": 4, "topk": 1, "page_size": 2}
    )
    q = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]).to(torch.float8_e4m3fn)
    keys = torch.tensor([[-4.0, 0, 0, 0], [0.5, 0, 0, 0]]).to(torch.float8_e4m3fn).view(torch.int8).flatten()
    scales = torch.tensor([1.0, 2.0]).view(torch.int8)
    cache = torch.cat([keys, scales]).reshape(1, 2, 1, 8)
    lengths, table = torch.tensor([2], dtype=torch.int32), torch.tensor([[0]], dtype=torch.int32)
    inputs = {"q": q, "cache": cache, "weights": torch.tensor([[-1.0]]), "lengths": lengths, "table": table}
    assert _run(definition, inputs).tolist() == [[0]]
    assert _run(definition, {**inputs, "weights": torch.tensor([[1.0]])}).tolist() == [[1]]


@pytest.mark.parametrize("seed", range(4))
def test_generated_indices_are_distinct_slots_with_padding_behind(seed: int) -> None:
    definition = get_kernel_type("dsa_sparse_attention").build({**ATTENTION, "topk": 40, "page_size": 4})
    axes = choose_axes(definition, {"num_pages": 8})
    indices = generate_inputs(definition, axes, seed=seed)["sparse_indices"].tolist()
    for row in indices:
        chosen = [slot for slot in row if slot >= 0]
        assert row == [*chosen, *[-1] * (40 - len(chosen))]
        assert len(set(chosen)) == len(chosen) > 0
        assert max(chosen) < 32
    assert sum(slot >= 0 for slot in indices[0]) == 32


@pytest.mark.parametrize(("columns", "pages"), [(5, 9), (9, 5)])
def test_generated_block_tables_repeat_a_page_only_where_there_are_too_few(columns: int, pages: int) -> None:
    definition = get_kernel_type("dsa_topk_indexer").build({**INDEXER, "page_size": 4})
    axes = choose_axes(definition, {"max_num_pages": columns, "num_pages": pages})
    inputs = generate_inputs(definition, axes)
    for row in inputs["block_table"].tolist():
        assert len(set(row)) == min(columns, pages)
        assert max(row) < pages
    assert inputs["seq_lens"][0] == columns * 4
    assert inputs["seq_lens"].min() >= 1


def test_packed_index_keys_hold_no_nan() -> None:
    import torch

    definition = get_kernel_type("dsa_topk_indexer").build({**INDEXER, "page_size": 4})
    cache = generate_inputs(definition, choose_axes(definition))["k_index_cache_fp8"].flatten(1)
    assert cache[:, : 4 * 8].clone().view(torch.float8_e4m3fn).float().isfinite().all()
    scales = cache[:, 4 * 8 :].clone().view(torch.float32)
    assert scales.min() >= 0.5
    assert scales.max() < 1.5


@pytest.mark.parametrize("wrong", [{"index_head_dim": 6}, {"dtype": "bfloat16"}, {"topk": 0}], ids=str)
def test_impossible_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        get_kernel_type("dsa_topk_indexer").build({**INDEXER, "page_size": 64, **wrong})


def _scores(inputs: dict[str, Any], sequence: int, length: int) -> dict[int, float]:
    import torch

    cache = inputs["k_index_cache_fp8"]
    page_size, dim = cache.shape[1], cache.shape[3] - 4
    scores = {}
    for token in range(length):
        page, offset = int(inputs["block_table"][sequence, token // page_size]), token % page_size
        data = bytes(value & 0xFF for value in cache[page].flatten().tolist())
        codes = torch.tensor(list(data[offset * dim : (offset + 1) * dim]), dtype=torch.uint8)
        start = page_size * dim + 4 * offset
        scale = torch.frombuffer(bytearray(data[start : start + 4]), dtype=torch.float32).double()
        key = codes.view(torch.float8_e4m3fn).double() * scale
        dots = (inputs["q_index_fp8"][sequence].double() @ key).clamp(min=0)
        scores[page * page_size + offset] = float(dots @ inputs["weights"][sequence].double())
    return scores
