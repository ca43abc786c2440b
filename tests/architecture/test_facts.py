from __future__ import annotations

from typing import Any

import pytest

from fib_tools.architecture.facts import find_backbone, read_facts
from fib_tools.architecture.facts_schema import MixerKind, MlpKind, ModelFacts, NormKind, NormLayout, QkNorm
from fib_tools.architecture.quantization import QuantizationScheme
from fib_tools.errors import ConfigError
from fib_tools.sources.registry import get_model, list_models

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}


def _read(slug: str) -> ModelFacts:
    entry = get_model(slug)
    assert entry.config is not None
    return read_facts(entry.config, name=entry.repo_id)


def test_every_fact_of_a_plain_model_names_its_field() -> None:
    facts = read_facts(LLAMA, name="tiny")
    attention = facts.attentions["full"]
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (4, 2, 16)
    assert facts.provenance["attentions.full.num_kv_heads"] == "num_key_value_heads=2"
    assert facts.provenance["attentions.full.head_dim"] == "hidden_size / num_attention_heads = 64/4"
    assert facts.provenance["norm.eps"] == "rms_norm_eps=1e-05"
    assert [layer.intermediate_size for layer in facts.layers] == [96, 96]
    assert facts.dead_fields == ()


@pytest.mark.parametrize("entry", [entry for entry in list_models() if entry.config], ids=lambda entry: entry.slug)
def test_every_bundled_config_has_facts_of_a_known_family(entry: Any) -> None:
    facts = read_facts(entry.config, name=entry.repo_id)
    assert facts.is_known
    assert len(facts.layers) == facts.num_layers
    assert all(layer.attention in {*facts.attentions, *facts.linears, None} for layer in facts.layers)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": 1 << 21}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 1e300}, "hidden_size"),
        ({"num_hidden_layers": 2001}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"vocab_size": 1 << 25}, "vocab_size"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "telepathy"]}, "layer_types"),
        ({"layer_types": [["full_attention"], {}]}, "layer_types"),
        ({"num_experts": 8, "num_experts_per_tok": 9, "moe_intermediate_size": 8}, "num_experts_per_tok"),
        ({"num_experts": 8, "num_local_experts": 4}, "num_local_experts"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rotary_dim": 17}, "rotary_dim"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "big"}}, "rope_scaling.factor"),
        ({"quantization_config": []}, "quantization_config"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 0]}}, "weight_block_size"),
        ({"model_type": 7}, "model_type"),
    ],
)
def test_an_absurd_config_is_refused_by_the_name_of_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_facts({**LLAMA, **change}, name="tiny")
    assert field.rpartition(".")[2] in str(error.value)
    assert error.value.todo


def test_a_huge_value_is_not_repeated_in_full() -> None:
    with pytest.raises(ConfigError) as error:
        read_facts({**LLAMA, "hidden_size": "9" * 100_000}, name="tiny")
    assert len(str(error.value)) < 300


def test_two_names_for_one_fact_that_differ_are_a_contradiction() -> None:
    with pytest.raises(ConfigError, match=r"contradictory fields: rms_norm_eps=1e-05, norm_eps=0\.001"):
        read_facts({**LLAMA, "norm_eps": 1e-3}, name="tiny")


def test_an_unknown_model_type_is_read_by_the_general_rules_and_says_so() -> None:
    facts = read_facts({**LLAMA, "model_type": "brand_new", "some_new_field": {"a": 1}}, name="new")
    assert not facts.is_known
    assert "unknown model_type" in facts.notes[0]
    assert facts.attentions["full"].num_kv_heads == 2


def test_the_text_backbone_of_a_nested_config_is_read_and_the_vision_tower_named() -> None:
    facts = _read("kimi-k2.5")
    assert facts.text_path == "text_config"
    assert facts.out_of_scope == ("the vision tower (vision_config)",)
    assert facts.model_type == "kimi_k2"
    assert facts.architecture == "KimiK25ForConditionalGeneration"
    assert facts.provenance["hidden_size"] == "hidden_size=7168"


def test_a_backbone_that_is_no_object_is_refused() -> None:
    with pytest.raises(ConfigError, match="text_config"):
        find_backbone({"text_config": 3})


def test_kimi_k2_is_mla_with_the_scale_of_yarn() -> None:
    facts = _read("kimi-k2")
    attention = facts.attentions["full"]
    assert attention.mla is not None
    assert (attention.mla.kv_lora_rank, attention.mla.qk_rope_head_dim) == (512, 64)
    assert (attention.head_dim, attention.v_head_dim, attention.num_heads) == (192, 128, 64)
    assert attention.sm_scale == pytest.approx(192**-0.5 * (0.1 * 3.4657359 + 1) ** 2, rel=1e-6)
    assert attention.rope is not None
    assert not attention.rope.is_neox
    assert facts.count_layers(mlp=MlpKind.DENSE) == 1
    assert facts.moe is not None
    assert (facts.moe.num_experts, facts.moe.top_k, facts.moe.routing) == (384, 8, "sigmoid_bias")
    assert facts.quantization.scheme is QuantizationScheme.FP8_BLOCK
    assert facts.dead_fields == ("num_key_value_heads",)


def test_deepseek_v3_routes_in_groups_and_has_a_layer_for_mtp() -> None:
    facts = _read("deepseek-v3")
    assert facts.moe is not None
    assert (facts.moe.routing, facts.moe.n_group, facts.moe.topk_group) == ("ds", 8, 4)
    assert facts.num_mtp_layers == 1


def test_deepseek_v3_2_and_glm_5_differ_in_the_rope_of_their_indexer() -> None:
    deepseek, glm = (_read(slug).attentions["full"].indexer for slug in ("deepseek-v3.2", "glm-5"))
    assert deepseek is not None
    assert glm is not None
    assert (deepseek.num_heads, deepseek.topk, deepseek.is_neox) == (64, 2048, True)
    assert (glm.num_heads, glm.topk, glm.is_neox) == (32, 2048, False)
    assert "head_dim" in _read("glm-5").dead_fields


def test_the_dense_width_of_a_model_without_dense_layers_is_dead() -> None:
    facts = _read("qwen3-30b-a3b")
    assert "intermediate_size" in facts.dead_fields
    assert facts.count_layers(mlp=MlpKind.MOE) == 48


def test_nemotron_h_without_an_e_in_its_pattern_has_no_experts() -> None:
    facts = _read("nemotron-h-56b")
    assert facts.moe is None
    assert facts.norm.layout is NormLayout.SINGLE
    assert facts.count_layers(attention="mamba2") == 54
    assert facts.count_layers(mlp=MlpKind.DENSE) == 54
    assert facts.attentions["full"].rope is None
    assert not facts.mlp.is_gated


def test_mimo_has_two_kinds_of_attention_with_their_own_heads_sinks_and_window() -> None:
    facts = _read("mimo-v2-flash")
    full, sliding = facts.attentions["full"], facts.attentions["sliding"]
    assert (full.num_kv_heads, full.has_sinks, full.window_left) == (4, False, -1)
    assert (sliding.num_kv_heads, sliding.has_sinks, sliding.window_left) == (8, True, 128)
    assert (full.head_dim, full.v_head_dim) == (192, 128)
    assert full.rope is not None
    assert sliding.rope is not None
    assert (full.rope.theta, sliding.rope.theta, full.rope.rotary_dim) == (5e6, 1e4, 64)


def test_gemma_3_takes_scale_from_its_scalar_and_two_ropes() -> None:
    facts = _read("gemma-3-27b")
    full, sliding = facts.attentions["full"], facts.attentions["sliding"]
    assert facts.norm.kind is NormKind.GEMMA_RMSNORM
    assert full.sm_scale == pytest.approx(168**-0.5)
    assert full.rope is not None
    assert sliding.rope is not None
    assert (full.rope.scaling, sliding.rope.scaling) == ("linear", "none")
    assert sliding.rope.theta == 1e4
    assert (facts.count_layers(attention="full"), facts.count_layers(attention="sliding")) == (10, 52)
    assert "default of gemma3_text" in facts.provenance["vocab_size"]


def test_llama_4_chunks_three_layers_of_four_and_leaves_rope_out_of_the_fourth() -> None:
    facts = _read("llama-4-scout-17b-16e")
    assert [layer.attention for layer in facts.layers[:4]] == ["chunked", "chunked", "chunked", "full_nope"]
    assert facts.attentions["chunked"].qk_norm is QkNorm.L2
    assert facts.attentions["full_nope"].qk_norm is QkNorm.NONE
    assert facts.attentions["full_nope"].rope is None


def test_decilm_layers_have_their_own_widths_and_some_no_attention() -> None:
    facts = _read("llama-3.3-nemotron-super-49b")
    assert facts.count_layers(attention="full_kv8") == 49
    assert {layer.intermediate_size for layer in facts.layers} >= {28672, 14336}
    assert any(layer.mixer is MixerKind.NONE for layer in facts.layers)


def test_deepseek_v4_reads_compression_hash_layers_and_hyper_connections() -> None:
    facts = _read("deepseek-v4-flash")
    sparse, heavy = facts.attentions["compressed_sparse"], facts.attentions["compressed_heavy"]
    assert (sparse.compress_rate, heavy.compress_rate) == (4, 128)
    assert sparse.indexer is not None
    assert heavy.indexer is None
    assert facts.moe is not None
    assert (facts.moe.routing, facts.moe.num_hash_layers) == ("sqrtsoftplus_bias", 3)
    assert facts.hyper_connections is not None
    assert (facts.hyper_connections.streams, facts.hyper_connections.eps) == (4, 1e-6)
    assert facts.provenance["hyper_connections.eps"] == "hc_eps=1e-06"
    assert facts.quantization.expert_scheme is QuantizationScheme.MXFP4


def test_a_window_over_the_longest_input_is_none() -> None:
    facts = _read("phi-3.5-moe")
    assert facts.attentions["full"].window is None
    assert "no less than max_position_embeddings" in facts.provenance["window"]
