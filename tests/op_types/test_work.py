from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fib_tools.model.definition import AxisVar, Definition
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.base import tensor
from fib_tools.op_types.inputs import plan_inputs
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.op_types.sizes import choose_test_axes
from fib_tools.op_types.work import Work, find_work
from kernel_examples import KERNEL_EXAMPLES


def _find(
    kernel_id: str,
    parameters: Mapping[str, Any],
    sizes: Mapping[str, int],
    fixed: Mapping[str, Any] | None = None,
) -> Work:
    definition = get_kernel_type(kernel_id).build(parameters)
    axes = choose_axes(definition, sizes)
    plan = plan_inputs(definition, axes, seed=0, device="cpu", fixed=fixed)
    return find_work(definition, axes, plan.make(0))


def _ints(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize("size", ["small", "medium"])
@pytest.mark.parametrize("kernel_id", list(KERNEL_EXAMPLES))
def test_no_more_is_counted_than_there_is(kernel_id: str, size: str) -> None:
    definition = get_kernel_type(kernel_id).build(KERNEL_EXAMPLES[kernel_id])
    axes = choose_axes(definition, choose_test_axes(definition, size))
    inputs = plan_inputs(definition, axes, seed=3, device="cpu").make(1)
    work = find_work(definition, axes, inputs)
    held = sum(value.numel() * value.itemsize for value in inputs.values() if isinstance(value, torch.Tensor))
    outputs = find_work(_without_op_type(definition), axes, inputs).written
    assert 0 < work.read <= held
    assert 0 < work.written <= outputs
    assert work.bytes == work.read + work.written
    assert work.flops >= 0
    assert work.unit in {"bf16", "fp8", "fp4", "tf32", "fp32"}


def _without_op_type(definition: Definition) -> Definition:
    return definition.model_copy(update={"op_type": "unheard_of"})


def test_a_norm_reads_rows_and_weight_and_writes_rows() -> None:
    work = _find("rmsnorm", {"hidden_size": 64}, {"batch_size": 3})
    assert work == Work(read=3 * 64 * 2 + 64 * 2, written=3 * 64 * 2)


def test_a_fused_add_norm_writes_the_stream_too() -> None:
    work = _find("fused_add_rmsnorm", {"hidden_size": 64}, {"batch_size": 3})
    assert (work.read, work.written) == (2 * 3 * 128 + 128, 2 * 3 * 128)


def test_an_activation_reads_gate_and_up() -> None:
    assert _find("silu_and_mul", {"intermediate_size": 32}, {"num_tokens": 5}).bytes == 5 * 32 * 2 * 3


def test_a_product_of_bfloat16() -> None:
    work = _find("gemm", {"n": 48, "k": 64}, {"M": 6})
    assert work == Work(read=(6 + 48) * 64 * 2, written=6 * 48 * 2, flops=2 * 6 * 48 * 64, unit="bf16")


def test_a_product_of_float32_has_the_faster_arithmetic() -> None:
    assert _find("gemm", {"n": 48, "k": 64, "dtype": "float32"}, {"M": 6}).unit == "tf32"


def test_a_batched_product() -> None:
    work = _find("bmm", {"b": 2, "n": 48, "k": 64}, {"M": 6})
    assert (work.bytes, work.flops) == (2 * 2 * (6 * 64 + 64 * 48 + 6 * 48), 2 * 2 * 6 * 48 * 64)


def test_a_product_of_e4m3_in_blocks_reads_the_scales() -> None:
    work = _find("gemm_fp8_block", {"n": 256, "k": 384}, {"M": 6})
    assert work == Work(
        read=(6 + 256) * 384 + 4 * (6 * 3 + 2 * 3), written=6 * 256 * 2, flops=2 * 6 * 256 * 384, unit="fp8"
    )


def test_packed_products_count_the_plain_length_and_the_packed_bytes() -> None:
    four = _find("gemm_nvfp4", {"n": 48, "k": 64}, {"M": 6})
    assert four == Work(read=(6 + 48) * (32 + 4) + 4, written=6 * 48 * 2, flops=2 * 6 * 48 * 64, unit="fp4")
    words = _find("gemm_w4a16", {"n": 48, "k": 256}, {"M": 6})
    assert words.read == 6 * 256 * 2 + 48 * 128 + 48 * 2 * 2
    assert (words.flops, words.unit) == (2 * 6 * 48 * 256, "bf16")


def test_an_embedding_reads_each_row_once() -> None:
    ids = torch.tensor([4, 4, 9, 4], dtype=torch.int64)
    work = _find("embedding", {"vocab_size": 100, "hidden_size": 16}, {"num_tokens": 4}, {"input_ids": ids})
    assert work == Work(read=2 * 16 * 2, written=4 * 16 * 2)


def test_a_rotation_reads_the_rows_of_its_positions() -> None:
    positions = torch.tensor([7, 7, 8], dtype=torch.int64)
    sizes = {"nnz": 3, "num_q_heads_x_head_size": 128, "num_k_heads_x_head_size": 64, "max_seq_len": 32}
    work = _find("rope_with_cos_sin_cache", {"head_dim": 64, "rotary_dim": 32}, sizes, {"positions": positions})
    assert work == Work(read=3 * 192 * 2 + 2 * 32 * 4, written=3 * 192 * 2)


def test_appending_moves_the_new_rows_alone() -> None:
    parameters = {"num_kv_heads": 2, "head_dim": 64, "page_size": 16}
    work = _find("append_paged_kv_cache", parameters, {"nnz_kv": 6})
    assert work == Work(read=2 * 6 * 2 * 64 * 2, written=2 * 6 * 2 * 64 * 2)


def test_a_quantiser_reads_bfloat16_and_writes_codes_and_scales() -> None:
    assert _find("fp8_quantize_1x128", {"hidden_size": 256}, {"M": 6}) == Work(
        read=6 * 256 * 2, written=6 * 256 + 6 * 2 * 4
    )


def test_a_merge_of_states_moves_all() -> None:
    work = _find("merge_state", {"num_heads": 4, "head_dim": 64}, {"seq_len": 5})
    assert (work.read, work.written) == (2 * 5 * 4 * (128 + 4), 5 * 4 * (128 + 4))


def test_a_sampler_reads_each_probability_once() -> None:
    work = _find("top_k_sampling_from_probs", {"vocab_size": 128}, {"batch_size": 3})
    assert work == Work(read=3 * 128 * 4, written=3 * 8)


def test_drafted_tokens_need_one_row_of_the_target_at_least() -> None:
    work = _find("chain_speculative_sampling", {"vocab_size": 128}, {"batch_size": 3, "num_speculative": 4})
    assert work == Work(read=3 * 128 * 4, written=3 * 5 * 4)


def test_a_convolution_step_moves_the_slots_of_live_rows() -> None:
    work = _find(
        "causal_conv1d_decode",
        {"channels": 64, "width": 4},
        {"batch_size": 3, "state_cache_size": 9},
        {"conv_state_indices": _ints(5, -1, 0)},
    )
    assert work == Work(read=2 * 64 * 2 + 2 * 64 * 3 * 2 + 64 * 4 * 2, written=3 * 64 * 2 + 2 * 64 * 3 * 2)


def test_a_convolution_of_prompts_reads_the_states_that_there_are() -> None:
    work = _find(
        "causal_conv1d_prefill",
        {"channels": 64, "width": 4},
        {"total_seq_len": 10, "num_seqs": 3, "state_cache_size": 5},
        {
            "query_start_loc": _ints(0, 4, 4, 10),
            "cache_indices": _ints(1, 2, 3),
            "has_initial_state": torch.tensor([True, True, False]),
        },
    )
    state = 64 * 3 * 2
    assert work == Work(read=10 * 128 + state + 64 * 4 * 2, written=10 * 128 + 2 * state)


def test_a_delta_rule_reads_and_writes_its_states() -> None:
    parameters = {"num_q_heads": 2, "num_v_heads": 4, "head_size": 32}
    work = _find("gdn_decode", parameters, {"batch_size": 3})
    states = 3 * 4 * 32 * 32 * 4
    assert work.read == 3 * 2 * (2 * 64 + 128 + 2 * 4) + states + 2 * 4 * 4
    assert work.written == 3 * 128 * 2 + states
    assert (work.flops, work.unit) == (6 * 3 * 4 * 32 * 32, "bf16")


def test_drafted_tokens_of_a_delta_rule_touch_the_slots_of_live_rows() -> None:
    parameters = {"num_q_heads": 2, "num_v_heads": 4, "head_size": 32}
    sizes = {"batch_size": 3, "seq_len": 2, "pool_size": 7}
    work = _find("gdn_mtp", parameters, sizes, {"initial_state_indices": _ints(6, -1, 2)})
    state = 4 * 32 * 32 * 4
    assert work.read == 2 * 2 * 2 * (2 * 64 + 128 + 2 * 4) + 2 * state + 2 * 4 * 4
    assert work.written == 3 * 2 * 128 * 2 + 2 * state + 3 * 2 * state


def test_kimis_delta_rule_reads_a_decay_for_each_element() -> None:
    work = _find("kda_decode", {"num_heads": 4, "head_dim": 32}, {"batch_size": 3})
    state = 3 * 4 * 32 * 32 * 2
    assert work.read == 3 * 2 * (4 * 128 + 4) + state
    assert work.written == 3 * 128 * 2 + state


def test_a_state_space_moves_the_slots_of_its_rows() -> None:
    parameters = {"num_heads": 4, "head_dim": 16, "d_state": 32, "num_groups": 2}
    work = _find("mamba_ssu_decode", parameters, {"batch_size": 3, "state_cache_size": 9})
    state = 3 * 4 * 16 * 32 * 4
    assert work.read == 3 * 2 * (64 + 2 * 64) + state
    assert work.written == 3 * 64 * 2 + state
    assert work.flops == 4 * 3 * 4 * 16 * 32


def test_an_indexer_scores_only_sequences_from_which_it_must_choose() -> None:
    parameters = {"num_index_heads": 4, "index_head_dim": 32, "topk": 64, "page_size": 16}
    table = torch.arange(12, dtype=torch.int32).reshape(2, 6)
    sizes = {"batch_size": 2, "max_num_pages": 6, "num_pages": 40}
    work = _find("dsa_topk_indexer", parameters, sizes, {"seq_lens": _ints(70, 64), "block_table": table})
    assert work == Work(read=4 * 32 + 4 * 4 + 70 * 36, written=2 * 64 * 4, flops=2 * 4 * 32 * 70, unit="fp8")


def test_sparse_attention_reads_each_chosen_slot_once() -> None:
    parameters = {"num_qo_heads": 4, "topk": 3, "page_size": 16, "sm_scale": 0.1}
    chosen = torch.tensor([[0, 5, -1], [5, 9, 100]], dtype=torch.int32)
    work = _find("dsa_sparse_attention", parameters, {"num_tokens": 2, "num_pages": 40}, {"sparse_indices": chosen})
    assert work == Work(
        read=2 * 4 * 576 * 2 + 4 * 576 * 2,
        written=2 * 4 * (512 * 2 + 4),
        flops=2 * 5 * 4 * (576 + 512),
        unit="bf16",
    )


def test_a_window_and_compressed_entries_are_read_once_each() -> None:
    parameters = {"num_qo_heads": 4, "head_dim": 64, "window": 2, "page_size": 16, "topk": 2, "compressed_page_size": 4}
    fixed = {
        "window_indices": torch.tensor([[3, 4], [4, -1]], dtype=torch.int32),
        "compressed_indices": torch.tensor([[0, 1], [1, 0]], dtype=torch.int32),
    }
    work = _find("dsv4_compressed_attention", parameters, {"num_tokens": 2}, fixed)
    assert work.read == 2 * 4 * 64 * 2 + 4 * 4 + (2 + 2) * 64 * 2
    assert work.flops == 4 * (3 + 4) * 4 * 64


def test_an_entry_reads_the_series_that_counts_in_it() -> None:
    rows = torch.tensor([[-1, -1, 0, 1], [0, 1, 2, 3]], dtype=torch.int32)
    parameters = {"head_dim": 32, "compress_rate": 2, "overlap": True}
    work = _find("kv_compress", parameters, {"num_rows": 9, "num_entries": 2}, {"window_rows": rows})
    assert work == Work(read=(2 + 4) * 2 * 32 * 4 + 2 * 64 * 4, written=2 * 32 * 4)


def test_experts_of_a_table_need_the_logits_that_it_names() -> None:
    work = _find("hash_topk", {"num_routed_experts": 16, "topk": 4, "vocab": 100}, {"num_tokens": 6})
    assert work == Work(read=6 * 4 * 4, written=6 * 4 * 8)
    routing = _find("moe_routing", {"num_experts": 16, "top_k": 4, "routing": "sigmoid"}, {"num_tokens": 6})
    assert routing.read == 6 * 16 * 4


def test_the_projection_of_streams_is_a_product() -> None:
    work = _find("mhc_prenorm_gemm", {"n": 24, "k": 256}, {"num_tokens": 6})
    assert work == Work(read=6 * 256 * 2 + 24 * 256 * 4, written=6 * 25 * 4, flops=2 * 6 * 24 * 256, unit="tf32")


def _foreign(**inputs: Any) -> Definition:
    return Definition(
        name="foreign",
        op_type="unheard_of",
        axes={"rows": AxisVar(), "columns": AxisVar()},
        inputs=inputs,
        outputs={"y": tensor("float16", "rows columns", "y")},
        reference="def run():\n    pass\n",
    )


AXES = {"rows": 4, "columns": 8}


def test_an_unknown_kernel_reads_its_floats_and_writes_its_outputs() -> None:
    definition = _foreign(x=tensor("float32", "rows columns", "x"), mask=tensor("bool", "rows", "m"))
    assert find_work(definition, AXES, {"x": torch.zeros(4, 8)}) == Work(read=128, written=64)


def test_an_unknown_kernel_with_indices_may_gather() -> None:
    definition = _foreign(x=tensor("float32", "rows columns", "x"), ids=tensor("int32", "rows", "i"))
    assert find_work(definition, AXES, {"x": torch.zeros(4, 8)}) == Work(read=0, written=64)


def test_elements_that_share_storage_count_once() -> None:
    definition = _foreign(x=tensor("float32", "rows columns", "x"))
    assert find_work(definition, AXES, {"x": torch.zeros(1, 8).expand(4, 8)}).read == 32


@pytest.mark.parametrize("op_type", ["gqa_paged", "mla_paged", "gqa_ragged", "moe", "gemm", "gdn", "mamba_ssu", "page"])
def test_definitions_of_others_with_other_names_count_outputs(op_type: str) -> None:
    definition = _foreign(x=tensor("float32", "rows columns", "x"), ids=tensor("int32", "rows", "i"))
    foreign = definition.model_copy(update={"op_type": op_type})
    assert find_work(foreign, AXES, {"x": torch.zeros(4, 8)}) == Work(read=0, written=64)
