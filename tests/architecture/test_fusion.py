from __future__ import annotations

import pytest

from fib_tools.architecture.facts import read_facts
from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.fusion import (
    Cut,
    FusedLinear,
    fuse_attention,
    fuse_indexer,
    fuse_mla,
    fuse_mlp,
    fuse_router,
    fuse_shared_experts,
)
from fib_tools.architecture.fusion_compressed import fuse_compressed
from fib_tools.architecture.fusion_norms import list_hidden_norms
from fib_tools.architecture.fusion_recurrent import cut_recurrent, fuse_recurrent
from fib_tools.errors import ParallelismError
from fib_tools.sources.registry import get_model


def load(name: str) -> ModelFacts:
    entry = get_model(name)
    assert entry.config is not None
    return read_facts(entry.config, name=entry.repo_id)


def sizes(linears: tuple[FusedLinear, ...]) -> dict[str, tuple[int, int]]:
    return {linear.name: (linear.n, linear.k) for linear in linears}


def test_queries_keys_and_values_become_one_gemm() -> None:
    facts = load("llama-3.1-8b")
    linears = fuse_attention(facts.attentions["full"], facts, key="full", tp=1)
    assert sizes(linears) == {"qkv_proj": (6144, 4096), "o_proj": (4096, 4096)}
    assert [(part.path, part.role) for part in linears[0].parts] == [
        ("self_attn.q_proj", "q"),
        ("self_attn.k_proj", "k"),
        ("self_attn.v_proj", "v"),
    ]


def test_replicated_kv_heads_make_the_fused_rows_more_than_a_share() -> None:
    facts = load("qwen3-30b-a3b")
    (key,) = facts.attentions
    linears = fuse_attention(facts.attentions[key], facts, key=key, tp=8)
    assert sizes(linears) == {"qkv_proj": (4 * 128 + 2 * 128, 2048), "o_proj": (2048, 512)}


def test_an_output_gate_doubles_the_query_rows() -> None:
    facts = load("qwen3-next-80b-a3b")
    (key,) = facts.attentions
    assert sizes(fuse_attention(facts.attentions[key], facts, key=key, tp=1))["qkv_proj"] == (
        2 * 16 * 256 + 2 * 2 * 256,
        2048,
    )


def test_the_a_projections_of_mla_are_fused_and_whole_on_every_gpu() -> None:
    facts = load("deepseek-v3")
    (key,) = facts.attentions
    attention = facts.attentions[key]
    assert attention.mla is not None
    linears = fuse_mla(attention, attention.mla, facts, key=key, tp=8)
    assert sizes(linears) == {
        "fused_qkv_a_proj_with_mqa": (2112, 7168),
        "q_b_proj": (3072, 1536),
        "kv_b_proj": (4096, 512),
        "o_proj": (7168, 2048),
    }
    assert [linear.cut for linear in linears] == [Cut.REPLICATED, Cut.COLUMN, Cut.COLUMN, Cut.ROW]
    assert [linear.is_cut for linear in linears] == [False, True, True, True]


def test_without_a_query_rank_mla_projects_queries_directly() -> None:
    facts = load("deepseek-v2-lite")
    (key,) = facts.attentions
    attention = facts.attentions[key]
    assert attention.mla is not None
    names = list(sizes(fuse_mla(attention, attention.mla, facts, key=key, tp=1)))
    assert names == ["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]


def test_minicpm3_keeps_its_a_projections_apart() -> None:
    facts = load("minicpm3-4b")
    (key,) = facts.attentions
    attention = facts.attentions[key]
    assert attention.mla is not None
    names = list(sizes(fuse_mla(attention, attention.mla, facts, key=key, tp=1)))
    assert names[:3] == ["q_a_proj", "kv_a_proj_with_mqa", "q_b_proj"]


def test_the_indexer_is_whole_on_every_gpu() -> None:
    facts = load("deepseek-v3.2")
    (key,) = facts.attentions
    linears = fuse_indexer(facts.attentions[key], facts, key=key)
    assert sizes(linears) == {"wq_b": (8192, 1536), "wk": (128, 7168), "weights_proj": (64, 7168)}
    assert [linear.is_quantizable for linear in linears] == [True, True, False]


def test_a_model_without_an_indexer_has_no_indexer_projections() -> None:
    facts = load("deepseek-v3")
    (key,) = facts.attentions
    assert fuse_indexer(facts.attentions[key], facts, key=key) == ()


def test_gate_and_up_become_one_gemm() -> None:
    facts = load("llama-3.1-8b")
    assert sizes(fuse_mlp(facts, 14336, tp=8)) == {"gate_up_proj": (3584, 4096), "down_proj": (4096, 1792)}


def test_an_mlp_without_a_gate_has_up_alone() -> None:
    facts = load("nemotron-h-56b")
    assert list(sizes(fuse_mlp(facts, 32768, tp=1))) == ["up_proj", "down_proj"]


def test_shared_experts_are_one_mlp_of_their_total_width_with_a_gate_where_there_is_one() -> None:
    facts = load("qwen3-next-80b-a3b")
    assert facts.moe is not None
    assert sizes(fuse_shared_experts(facts.moe, facts, tp=4)) == {
        "gate_up_proj": (256, 2048),
        "down_proj": (2048, 128),
        "shared_expert_gate": (1, 2048),
    }


def test_a_model_without_shared_experts_has_none() -> None:
    facts = load("qwen3-30b-a3b")
    assert facts.moe is not None
    assert fuse_shared_experts(facts.moe, facts, tp=1) == ()


def test_the_router_is_neither_cut_nor_quantised() -> None:
    facts = load("kimi-k2")
    assert facts.moe is not None
    router = fuse_router(facts.moe, facts)
    assert (router.n, router.k, router.cut, router.is_quantizable) == (384, 7168, Cut.REPLICATED, False)


def test_gated_delta_net_projects_in_two_gemms() -> None:
    facts = load("qwen3-next-80b-a3b")
    linears = fuse_recurrent(facts.linears["gdn"], facts, key="gdn", tp=2)
    assert sizes(linears) == {"in_proj_qkvz": (6144, 2048), "in_proj_ba": (32, 2048), "out_proj": (2048, 2048)}


def test_mamba_projects_gate_values_groups_and_steps_in_one_gemm() -> None:
    facts = load("nemotron-3-nano-30b-a3b")
    linears = fuse_recurrent(facts.linears["mamba2"], facts, key="mamba2", tp=1)
    assert sizes(linears) == {"in_proj": (2 * 4096 + 2 * 1024 + 64, 2688), "out_proj": (2688, 4096)}


def test_mamba_groups_are_replicated_where_they_do_not_divide() -> None:
    facts = load("nemotron-3-nano-30b-a3b")
    share = cut_recurrent(facts.linears["mamba2"], 16)
    assert (share.key_heads, share.value_heads, share.conv_channels) == (1, 4, 2 * 128 + 4 * 64)


def test_delta_net_heads_that_do_not_divide_are_refused() -> None:
    facts = load("qwen3-next-80b-a3b")
    with pytest.raises(ParallelismError, match="value heads of linear attention=32 cannot be cut by TP 3"):
        cut_recurrent(facts.linears["gdn"], 3)


def test_deepseek_v4_shares_one_kv_head_and_reduces_its_output_in_two_steps() -> None:
    facts = load("deepseek-v4-flash")
    key = next(key for key, value in facts.attentions.items() if value.indexer)
    attention = facts.attentions[key]
    assert attention.output_lora is not None
    linears = fuse_compressed(attention, attention.output_lora, facts, key=key, tp=1)
    assert [(linear.name, linear.n, linear.k) for linear in linears] == [
        ("wqkv_a", 1536, 4096),
        ("wq_b", 32768, 1024),
        ("wo_b", 4096, 8192),
        ("wkv_gate", 2048, 4096),
        ("wkv_gate", 512, 4096),
        ("wq_b", 8192, 1024),
        ("weights_proj", 64, 4096),
    ]


def list_norms(name: str) -> list[tuple[str, bool, int]]:
    return [(norm.name, norm.is_fused, len(norm.layers)) for norm in list_hidden_norms(load(name))]


def test_the_first_norm_is_plain_and_all_that_follow_take_the_add_in() -> None:
    assert list_norms("llama-3.1-8b") == [
        ("input_layernorm", False, 1),
        ("input_layernorm", True, 31),
        ("post_attention_layernorm", True, 32),
        ("norm", True, 0),
    ]


def test_gemma_norms_after_a_sublayer_stay_plain() -> None:
    assert list_norms("gemma-2-9b") == [
        ("input_layernorm", False, 1),
        ("input_layernorm", True, 41),
        ("post_attention_layernorm", False, 42),
        ("pre_feedforward_layernorm", True, 42),
        ("post_feedforward_layernorm", False, 42),
        ("norm", True, 0),
    ]


def test_post_norm_models_fuse_nothing() -> None:
    assert not any(is_fused for _, is_fused, _ in list_norms("exaone-4.0-32b"))


def test_layer_norms_and_scaled_residuals_stay_plain() -> None:
    assert not any(is_fused for _, is_fused, _ in (*list_norms("phi-3.5-moe"), *list_norms("minicpm3-4b")))


def test_a_layer_of_one_sublayer_has_one_norm() -> None:
    assert list_norms("nemotron-3-nano-30b-a3b") == [("norm", False, 1), ("norm", True, 51), ("norm", True, 0)]
