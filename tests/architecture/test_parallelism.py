from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fib_tools.architecture.parallelism import (
    ServingPoint,
    check_fp8_block,
    cut_experts,
    cut_kv_heads,
    cut_mxfp4_width,
    cut_query_heads,
    cut_size,
    cut_vocabulary,
    get_serving_point,
)
from fib_tools.errors import ParallelismError
from fib_tools.sources.cookbook import ServingConfig


def test_dp_attention_cuts_attention_by_tp_over_dp() -> None:
    point = ServingPoint(tp=8, dp=4, enable_dp_attention=True)
    assert (point.attention_tp, point.tp, point.describe()) == (2, 8, "tp8 dp4-attention")


def test_data_parallel_replicas_leave_attention_cut_by_tp() -> None:
    assert ServingPoint(tp=8, dp=2).attention_tp == 8


def test_dp_that_does_not_divide_tp_is_refused() -> None:
    with pytest.raises(ParallelismError, match=r"tp=8 cannot be cut by dp 3.*use dp 1, 2, 4, 8"):
        _ = ServingPoint(tp=8, dp=3, enable_dp_attention=True).attention_tp


def test_an_expert_is_cut_by_what_expert_parallelism_leaves_of_tp() -> None:
    assert ServingPoint(tp=8, ep=4).expert_tp == 2


def test_a_single_data_parallel_rank_is_no_dp_attention() -> None:
    points = (
        ServingPoint(tp=8, dp=4, enable_dp_attention=True),
        ServingPoint(tp=8, dp=1, enable_dp_attention=True),
        ServingPoint(tp=8, dp=4),
    )
    assert [point.has_dp_attention for point in points] == [True, False, False]


def test_an_mxfp4_expert_is_cut_in_whole_blocks() -> None:
    assert [cut_mxfp4_width(2880, tp) for tp in (1, 2, 4, 8, 16)] == [2880, 1440, 736, 384, 192]
    assert cut_mxfp4_width(2048, 8) == 256


def test_an_mxfp4_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ParallelismError, match="moe_intermediate_size=2880 cannot be cut by TP / EP 7"):
        cut_mxfp4_width(2880, 7)


@given(st.integers(1, 128), st.sampled_from((1, 2, 4, 8, 16)))
def test_the_gpus_together_hold_every_mxfp4_block(blocks: int, tp: int) -> None:
    share = cut_mxfp4_width(blocks * 32, tp)
    assert share % 32 == 0
    assert share == -(-blocks // tp) * 32


def test_phi_4_at_tp4_is_refused_with_the_values_that_work() -> None:
    assert cut_query_heads(40, 10, 4) == 10
    with pytest.raises(ParallelismError, match=r"10 KV heads cannot be cut by attention TP 4.*1, 2, 5, 10, 20, 40"):
        cut_kv_heads(40, 10, 4)


def test_qwen25_7b_at_tp8_is_refused_with_the_values_that_work() -> None:
    with pytest.raises(ParallelismError, match=r"28 query heads cannot be cut by attention TP 8.*1, 2, 4, 28"):
        cut_query_heads(28, 4, 8)


def test_kv_heads_are_replicated_past_their_number() -> None:
    assert [cut_kv_heads(64, 8, tp) for tp in (1, 4, 8, 16, 64)] == [8, 2, 1, 1, 1]


@given(st.integers(1, 256), st.integers(1, 64), st.integers(1, 128))
def test_gpus_together_hold_every_kv_head(heads: int, kv_heads: int, tp: int) -> None:
    try:
        local = cut_kv_heads(heads, kv_heads, tp)
    except ParallelismError:
        assert kv_heads % tp
        assert tp % kv_heads
    else:
        assert local * tp >= kv_heads
        assert local * tp % kv_heads == 0


def test_experts_are_cut_by_ep_alone() -> None:
    assert cut_experts(384, ServingPoint(tp=8, ep=4)) == 96


def test_ep_that_does_not_divide_tp_is_refused() -> None:
    with pytest.raises(ParallelismError, match=r"tp=8 cannot be cut by EP 3.*use EP 1, 2, 4, 8"):
        cut_experts(384, ServingPoint(tp=8, ep=3))


@pytest.mark.parametrize(
    ("vocabulary", "tp", "rows"),
    [(128256, 1, 128256), (128256, 8, 16032), (129280, 8, 16160), (163840, 8, 20480), (50257, 8, 6288), (100, 3, 64)],
)
def test_the_vocabulary_is_padded_as_sglang_pads_it(vocabulary: int, tp: int, rows: int) -> None:
    assert cut_vocabulary(vocabulary, tp) == rows


def test_a_share_inside_an_fp8_block_is_refused_with_the_values_that_keep_blocks_whole() -> None:
    check_fp8_block(768 // 2, 128, what="experts", tp=2)
    with pytest.raises(ParallelismError, match=r"a share of 192 is not a multiple of the fp8 block 128.*TP 1, 2, 3, 6"):
        check_fp8_block(768 // 4, 128, what="experts", tp=4)


def test_a_size_that_no_tp_can_cut_asks_for_another_checkpoint() -> None:
    with pytest.raises(ParallelismError, match="use a checkpoint without block scales"):
        check_fp8_block(100, 128, what="experts", tp=1)


def test_an_indivisible_size_names_itself_and_the_divisors() -> None:
    with pytest.raises(ParallelismError, match=r"intermediate_size=10 cannot be cut by TP 4.*use TP 1, 2, 5, 10$"):
        cut_size(10, 4, what="intermediate_size")


def test_a_cookbook_configuration_becomes_a_serving_point() -> None:
    config = ServingConfig(
        model="DeepSeek-V3.2",
        repo_id="deepseek-ai/DeepSeek-V3.2",
        hardware="H200",
        tp=8,
        dp=8,
        enable_dp_attention=True,
        quantization="fp8",
        speculative={"algorithm": "EAGLE", "num-draft-tokens": "4"},
        source="sgl-cookbook@abc:deepseek.yaml",
    )
    assert get_serving_point(config) == ServingPoint(
        tp=8,
        dp=8,
        enable_dp_attention=True,
        hardware="H200",
        quantization="fp8",
        draft_tokens=4,
        drafts_itself=True,
        source="sgl-cookbook@abc:deepseek.yaml",
    )


def test_a_separate_draft_model_is_not_the_models_own() -> None:
    config = ServingConfig(
        model="m", repo_id="o/m", speculative={"num-draft-tokens": "4", "draft-model-path": "o/draft"}, source="default"
    )
    assert get_serving_point(config).drafts_itself is False
