from __future__ import annotations

from functools import cache

import pytest

from fib_tools.architecture.facts import read_facts
from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.inventory import Inventory, build_inventory, list_serving_points
from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.architecture.structure import trace_structure
from fib_tools.errors import ParallelismError
from fib_tools.model.kernel import KernelNeed, WitnessSource
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.sources.registry import get_model, list_models
from fib_tools.sources.sglang import load_bundled_sglang

SAMPLING = {
    "top_k_sampling_from_probs",
    "top_p_sampling_from_probs",
    "top_k_top_p_sampling_from_probs",
    "min_p_sampling_from_probs",
    "top_k_renorm_probs",
    "top_p_renorm_probs",
    "softmax_sampling",
}


@cache
def load(name: str) -> ModelFacts:
    entry = get_model(name)
    assert entry.config is not None
    return read_facts(entry.config, name=entry.repo_id)


def build(name: str, *points: ServingPoint, page_sizes: tuple[int, ...] = (1,)) -> Inventory:
    return build_inventory(load(name), points or (ServingPoint(),), page_sizes=page_sizes)


def name_of(need: KernelNeed) -> str:
    return get_kernel_type(need.kernel).build(need.parameters).name


def names(inventory: Inventory) -> list[str]:
    return [name_of(need) for need in inventory.needs if need.kernel not in SAMPLING]


def find(inventory: Inventory, name: str) -> KernelNeed:
    (need,) = (need for need in inventory.needs if name_of(need) == name)
    return need


def test_llama_on_one_gpu_needs_exactly_these_kernels() -> None:
    inventory = build("llama-3.1-8b")
    assert names(inventory) == [
        "append_paged_kv_cache_kv8_d128_ps1",
        "embedding_v128256_d4096",
        "fused_add_rmsnorm_h4096",
        "gemm_n4096_k4096",
        "gemm_n4096_k14336",
        "gemm_n6144_k4096",
        "gemm_n28672_k4096",
        "gemm_n128256_k4096",
        "gqa_paged_decode_h32_kv8_d128_ps1",
        "gqa_paged_prefill_full_h32_kv8_d128_ps1",
        "gqa_paged_prefill_causal_h32_kv8_d128_ps1",
        "gqa_ragged_prefill_causal_h32_kv8_d128",
        "merge_state_h32_d128",
        "rmsnorm_h4096",
        "rope_with_cos_sin_cache_neox_style_d128_rd128",
        "silu_and_mul_i14336",
    ]
    assert {need.kernel for need in inventory.needs} >= SAMPLING
    assert (inventory.model, inventory.repo_id) == ("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct")
    assert (inventory.refused, inventory.unexplained, inventory.disagreements) == ((), (), ())


def test_constants_of_the_config_reach_the_parameters() -> None:
    norms = [need for need in build("llama-3.1-8b").needs if "rmsnorm" in need.kernel]
    assert [need.parameters for need in norms] == [{"hidden_size": 4096, "eps": 1e-05}] * 2


def test_every_registry_model_validates_at_its_own_serving_points() -> None:
    bare = {}
    for entry in list_models():
        if entry.config is None:
            continue
        inventory = build_inventory(load(entry.slug), list_serving_points(entry.repo_id))
        for need in inventory.needs:
            get_kernel_type(need.kernel).parameters.model_validate(need.parameters)
            assert need.tp
            assert need.ep
        bare[entry.slug] = len(inventory.needs)
    assert min(bare.values()) >= 20
    assert len(bare) >= 40


def test_deepseek_v3_at_tp8_is_cut_where_sglang_cuts_it() -> None:
    inventory = build("deepseek-v3", ServingPoint(tp=8), ServingPoint(tp=8, ep=8), page_sizes=(64,))
    found = set(names(inventory))
    assert {
        "gemm_fp8_block_scale_n2112_k7168",
        "gemm_fp8_block_scale_n3072_k1536",
        "gemm_fp8_block_scale_n4096_k512",
        "gemm_fp8_block_scale_n7168_k2048",
        "gemm_n256_k7168",
        "gemm_n16160_k7168",
        "gemm_n7168_k14336",
        "bmm_b16_n512_k128",
        "bmm_b16_n128_k512",
        "mla_paged_decode_h16_ckv512_kpe64_ps64",
        "mla_paged_prefill_causal_h16_ckv512_kpe64_ps64",
        "mla_ragged_prefill_causal_h16_qk192_vo128",
        "moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e256_h7168_i256",
        "moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048",
        "moe_routing_ds_topk8_ng8_kg4_e256",
        "chain_speculative_sampling_v129280",
    } <= found
    assert "gemm_fp8_block_scale_n256_k7168" not in found


def test_the_softmax_scale_of_mla_includes_the_yarn_factor() -> None:
    need = find(build("deepseek-v3", ServingPoint(tp=8)), "mla_paged_decode_h16_ckv512_kpe64_ps1")
    assert need.parameters["sm_scale"] == pytest.approx(192**-0.5 * (0.1 * 3.688879454113936 + 1) ** 2)


def test_kimi_k2_on_h200_has_the_heads_of_each_attention_tp() -> None:
    points = list_serving_points("kimi-k2", hardware="H200")
    assert [point.describe() for point in points] == ["tp8", "tp8 dp4-attention", "tp8 ep4"]
    inventory = build_inventory(load("kimi-k2"), points)
    decodes = [need for need in inventory.needs if need.kernel == "mla_paged_decode"]
    assert [(name_of(need), need.tp, need.ep, need.page_sizes) for need in decodes] == [
        ("mla_paged_decode_h8_ckv512_kpe64_ps1", (8,), (1, 4), (1,)),
        ("mla_paged_decode_h8_ckv512_kpe64_ps64", (8,), (1, 4), (64,)),
        ("mla_paged_decode_h32_ckv512_kpe64_ps1", (2,), (1,), (1,)),
        ("mla_paged_decode_h32_ckv512_kpe64_ps64", (2,), (1,), (64,)),
    ]
    experts = [need for need in inventory.needs if need.kernel == "moe_fp8_block_scale"]
    assert [(name_of(need), need.ep, need.layers) for need in experts] == [
        ("moe_fp8_block_scale_ds_routing_topk8_ng1_kg1_e96_h7168_i1024", (4,), 60),
        ("moe_fp8_block_scale_ds_routing_topk8_ng1_kg1_e384_h7168_i256", (1,), 60),
    ]


def test_dp_attention_cuts_the_embedding_with_attention_and_the_lm_head_by_tp() -> None:
    dp = ServingPoint(tp=8, dp=4, enable_dp_attention=True)
    inventory = build("kimi-k2", ServingPoint(tp=8), dp)
    embeddings = {name_of(need): need.tp for need in inventory.needs if need.kernel == "embedding"}
    assert embeddings == {"embedding_v20480_d7168": (8,), "embedding_v81920_d7168": (2,)}
    assert find(inventory, "gemm_n20480_k7168").tp == (8,)
    assert "gemm_n81920_k7168" not in names(inventory)
    cut = find(inventory, "embedding_v81920_d7168")
    assert any("vocab_parallel_embedding.py:185" in witness.detail for witness in cut.witnesses)
    (note,) = (note for note in inventory.notes if note.startswith("tp8"))
    assert note.startswith("tp8 dp4-attention: attention kernels and the embedding are cut by an attention TP of 2 ")
    assert "carry tp 2; the LM head stays cut by tp 8" in note


def test_some_models_keep_the_embedding_whole_with_dp_attention() -> None:
    dp = ServingPoint(tp=8, dp=4, enable_dp_attention=True)
    inventory = build("deepseek-v4-flash", dp, page_sizes=())
    embeddings = {name_of(need): need.tp for need in inventory.needs if need.kernel == "embedding"}
    assert embeddings == {"embedding_v129280_d4096": (1,)}
    assert any("the embedding is whole on every GPU and carries tp 1" in note for note in inventory.notes)


def test_without_dp_attention_the_embedding_is_cut_by_tp_and_nothing_is_noted() -> None:
    inventory = build("deepseek-v4-flash", ServingPoint(tp=8, dp=4), page_sizes=())
    assert find(inventory, "embedding_v16160_d4096").tp == (8,)
    assert not [note for note in inventory.notes if "attention TP" in note]


def test_qwen3_moe_at_tp4_has_one_kv_head_and_qk_norms() -> None:
    found = names(build("qwen3-30b-a3b", ServingPoint(tp=4)))
    assert {
        "gqa_paged_decode_h8_kv1_d128_ps1",
        "rmsnorm_h128",
        "gemm_n1280_k2048",
        "gemm_n2048_k1024",
        "gemm_n128_k2048",
        "moe_bf16_renorm_topk8_e128_h2048_i192",
    } <= set(found)


def test_dead_fields_lead_to_no_kernel() -> None:
    assert not [name for name in names(build("qwen3-30b-a3b")) if "6144" in name]


def test_gpt_oss_has_sinks_and_a_window_in_every_other_layer() -> None:
    inventory = build("gpt-oss-20b")
    decodes = {name_of(need): need.layers for need in inventory.needs if need.kernel == "gqa_paged_decode"}
    assert decodes == {
        "gqa_paged_decode_h64_kv8_d64_ps1_sinks": 12,
        "gqa_paged_decode_h64_kv8_d64_ps1_w127_sinks": 12,
    }
    assert {"gemm_bias_n5120_k2880", "moe_mxfp4_renorm_topk4_e32_h2880_i2880_swiglu_oai_bias"} <= set(names(inventory))


@pytest.mark.parametrize(("tp", "width"), [(1, 2880), (4, 736), (8, 384)])
def test_the_mxfp4_experts_of_gpt_oss_are_cut_in_whole_blocks(tp: int, width: int) -> None:
    inventory = build("gpt-oss-120b", ServingPoint(tp=tp))
    (need,) = (need for need in inventory.needs if need.kernel == "moe_mxfp4")
    assert need.parameters["intermediate_size"] == width
    said = any("gpt_oss.py:992-996" in witness.detail for witness in need.witnesses)
    assert said == (tp > 1)
    assert any("Marlin" in note and "mxfp4.py" in note for note in inventory.notes)


def test_bf16_experts_are_not_cut_by_blocks() -> None:
    facts = load("gpt-oss-120b")
    plain = facts.model_copy(update={"quantization": type(facts.quantization)()})
    inventory = build_inventory(plain, (ServingPoint(tp=8),), page_sizes=(1,))
    (need,) = (need for need in inventory.needs if need.kernel == "moe_bf16")
    assert need.parameters["intermediate_size"] == 360
    assert not [note for note in inventory.notes if "MXFP4" in note]


def test_gemma2_caps_its_scores_and_norms_after_sublayers() -> None:
    inventory = build("gemma-2-9b")
    assert {
        "gqa_paged_decode_h16_kv8_d256_ps1_cap50",
        "gqa_paged_decode_h16_kv8_d256_ps1_w4095_cap50",
        "gemma_rmsnorm_h3584",
        "gemma_fused_add_rmsnorm_h3584",
        "gelu_tanh_and_mul_i14336",
    } <= set(names(inventory))
    assert any("capped at 30" in note for note in inventory.notes)


def test_llama4_attends_in_chunks_with_rope_and_at_large_without() -> None:
    inventory = build("llama-4-scout-17b-16e", ServingPoint(tp=8))
    chunked = find(inventory, "gqa_paged_prefill_causal_h5_kv1_d128_ps1_chunk8192")
    whole = find(inventory, "gqa_paged_prefill_causal_h5_kv1_d128_ps1")
    rope = find(inventory, "rope_with_cos_sin_cache_gptj_style_d128_rd128")
    assert (chunked.layers, whole.layers, rope.layers) == (36, 12, 36)
    assert find(inventory, "rmsnorm_noweight_h128").layers == 36


def test_qwen3_next_mixes_delta_net_and_gated_attention() -> None:
    inventory = build("qwen3-next-80b-a3b", ServingPoint(draft_tokens=4))
    assert {
        "gdn_decode_qk16_v32_d128_k_last",
        "gdn_prefill_qk16_v32_d128_k_last",
        "gdn_mtp_qk16_v32_d128_k_last",
        "causal_conv1d_decode_c8192_w4",
        "rmsnorm_gated_h128",
        "gqa_paged_decode_h16_kv2_d256_ps1",
        "gemma_rmsnorm_h256",
        "gemm_n9216_k2048",
    } <= set(names(inventory))
    assert find(inventory, "gdn_decode_qk16_v32_d128_k_last").layers == 36


def test_nemotron_h_has_one_sublayer_a_layer() -> None:
    inventory = build("nemotron-3-nano-30b-a3b")
    layers = {name_of(need): need.layers for need in inventory.needs}
    assert layers["mamba_ssu_decode_h64_d64_s128_ng8"] == 23
    assert layers["gqa_paged_decode_h32_kv2_d128_ps1"] == 6
    assert layers["moe_bf16_ds_routing_topk6_ng1_kg1_e128_h2688_i1856_relu2"] == 23
    assert layers["relu2_i3712"] == 23
    assert "rope_with_cos_sin_cache_neox_style_d128_rd128" not in layers


def test_sparse_attention_is_paged_by_64_and_has_an_indexer() -> None:
    inventory = build("deepseek-v3.2", ServingPoint(tp=8), page_sizes=())
    found = set(names(inventory))
    assert {
        "dsa_sparse_attention_h16_ckv512_kpe64_topk2048_ps64",
        "dsa_topk_indexer_fp8_h64_d128_topk2048_ps64",
        "layernorm_h128",
        "gemm_n64_k7168",
        "gemm_fp8_block_scale_n128_k7168",
    } <= found
    assert not [name for name in found if name.startswith("mla_paged") or name.endswith("ps1")]


def test_a_tp_that_the_user_asked_for_and_that_does_not_divide_is_an_error() -> None:
    for name, tp in (("phi-4", 4), ("qwen2.5-7b", 8)):
        with pytest.raises(ParallelismError, match="use an attention TP of 1, 2, "):
            build(name, ServingPoint(tp=tp, requested=True))


def test_a_refusal_of_the_cookbooks_is_listed_and_leaves_nothing_behind() -> None:
    inventory = build("phi-4", ServingPoint(tp=4), ServingPoint(tp=2))
    assert inventory.points == (ServingPoint(tp=2),)
    assert [(refusal.point.tp, "10 KV heads" in refusal.reason) for refusal in inventory.refused] == [(4, True)]
    assert {tp for need in inventory.needs for tp in need.tp} == {2}


def test_an_fp8_expert_cut_inside_a_block_is_refused_as_sglang_refuses_it() -> None:
    inventory = build("qwen3-30b-a3b-fp8", ServingPoint(tp=4), ServingPoint(tp=4, ep=4))
    assert [point.describe() for point in inventory.points] == ["tp4 ep4"]
    assert "a share of 192 is not a multiple of the fp8 block 128" in inventory.refused[0].reason


def test_dynamic_fp8_quantises_activations_before_their_gemm() -> None:
    inventory = build("deepseek-v3", ServingPoint(tp=8))
    gemms = {need.parameters["k"] for need in inventory.needs if need.kernel == "gemm_fp8_block"}
    quantised = {need.parameters["hidden_size"] for need in inventory.needs if need.kernel == "fp8_quantize_1x128"}
    assert gemms == quantised


def test_a_cookbook_word_does_not_undo_how_the_weights_are_stored() -> None:
    point = ServingPoint(tp=8, quantization="fp8", source="sgl-cookbook@abc:kimi-k2.5.yaml")
    inventory = build("kimi-k2.5", point)
    (dispute,) = inventory.disagreements
    assert dispute.subject == "quantization"
    assert {need.kernel for need in inventory.needs if need.kernel.startswith("moe_w")} == {"moe_w4a16"}


def test_a_user_may_ask_for_the_plain_weights() -> None:
    inventory = build("kimi-k2", ServingPoint(tp=8, quantization="bf16", requested=True))
    assert not [need for need in inventory.needs if need.quantization]


def test_an_unquantised_checkpoint_takes_the_serving_points_quantisation() -> None:
    inventory = build("llama-3.1-8b", ServingPoint(quantization="nvfp4"))
    found = set(names(inventory))
    assert {"gemm_nvfp4_n6144_k4096", "nvfp4_quantize_k4096", "gemm_n128256_k4096"} <= found


def test_an_fp8_cache_reaches_the_attention_kernels() -> None:
    inventory = build("llama-3.1-8b", ServingPoint(kv_cache_dtype="fp8_e4m3"))
    (need,) = (need for need in inventory.needs if need.kernel == "gqa_paged_decode")
    assert need.parameters["kv_dtype"] == "float8_e4m3fn"


@pytest.mark.parametrize(
    ("name", "hardware", "sizes"),
    [
        ("llama-3.1-8b", "H100", {1}),
        ("llama-3.1-8b", "B200", {1, 64}),
        ("llama-3.1-8b", None, {1, 64}),
        ("deepseek-v3", "H200", {1, 64}),
        ("deepseek-v3.2", "H200", {64}),
    ],
)
def test_page_sizes_follow_the_engines_backends(name: str, hardware: str | None, sizes: set[int]) -> None:
    inventory = build(name, ServingPoint(tp=1, hardware=hardware), page_sizes=())
    assert {size for need in inventory.needs for size in need.page_sizes} == sizes


def test_a_page_size_of_the_serving_point_comes_first() -> None:
    inventory = build("llama-3.1-8b", ServingPoint(page_size=32), page_sizes=())
    assert {size for need in inventory.needs for size in need.page_sizes} == {32}


def test_a_model_that_the_cookbook_does_not_know_is_served_on_one_gpu() -> None:
    (point,) = list_serving_points("llama-3.1-8b", hardware="H100")
    assert (point.describe(), point.hardware, point.source) == ("tp1", "H100", "default")


def test_every_source_that_confirms_a_kernel_is_named() -> None:
    facts = load("llama-3.1-8b")
    inventory = build_inventory(facts, (ServingPoint(),), sglang=load_bundled_sglang())
    need = find(inventory, "gemm_n6144_k4096")
    lines = [witness.detail for witness in need.witnesses if witness.source == WitnessSource.SGLANG]
    assert any("models/llama.py" in line and "qkv_proj = QKVParallelLinear" in line for line in lines)
    details = {witness.detail for witness in need.witnesses if witness.source == WitnessSource.CONFIG}
    assert "num_attention_heads=32" in details
    assert need.module == "model.layers.*.self_attn.qkv_proj"
    assert need.layers == 32


def test_shared_kernels_are_one_need_of_all_their_modules() -> None:
    need = find(build("llama-3.1-8b"), "fused_add_rmsnorm_h4096")
    assert need.module.split(", ") == [
        "model.layers.*.input_layernorm",
        "model.layers.*.post_attention_layernorm",
        "model.norm",
    ]


def test_the_order_of_points_does_not_change_the_needs() -> None:
    points = (ServingPoint(tp=8), ServingPoint(tp=8, dp=4, enable_dp_attention=True), ServingPoint(tp=8, ep=4))
    forward, backward = build("kimi-k2", *points), build("kimi-k2", *reversed(points))
    assert [(need.kernel, need.parameters, need.tp, need.ep) for need in forward.needs] == [
        (need.kernel, need.parameters, need.tp, need.ep) for need in backward.needs
    ]


def test_what_no_kernel_type_describes_is_listed() -> None:
    """A relative of DeepSeek-V4 whose heads have no sinks, and whose hash layers weigh experts by sigmoids."""
    facts = load("deepseek-v4-flash")
    assert facts.moe is not None
    plain = {key: attention.model_copy(update={"has_sinks": False}) for key, attention in facts.attentions.items()}
    moe = facts.moe.model_copy(update={"routing": "sigmoid_bias"})
    odd = build_inventory(facts.model_copy(update={"attentions": plain, "moe": moe}), (ServingPoint(),))
    assert {item.operation for item in odd.unexplained} == {"attention", "routing"}
    assert not [need for need in odd.needs if need.kernel.startswith(("dsv4", "hash"))]


V4_KERNELS = (
    "dsa_topk_indexer", "dsv4_compressed_attention", "dsv4_window_attention", "hash_topk", "kv_compress",
    "mhc_head", "mhc_post", "mhc_pre_big_fuse", "mhc_prenorm_gemm", "moe_mxfp4", "moe_routing",
)  # fmt: skip


def test_deepseek_v4_has_a_kernel_for_everything_it_does() -> None:
    inventory = build_inventory(load("deepseek-v4-flash"), (ServingPoint(),))
    assert inventory.unexplained == ()
    own = {name_of(need): need.layers for need in inventory.needs if need.kernel in V4_KERNELS}
    assert own == {
        "dsa_topk_indexer_fp8_h64_d128_topk512_ps64": 21,
        "dsv4_compressed_attention_h64_d512_win128_all_ps256_cps2": 20,
        "dsv4_compressed_attention_h64_d512_win128_topk512_ps256_cps64": 21,
        "dsv4_window_attention_h64_d512_win128_ps256": 2,
        "hash_topk_e256_k6_v129280": 3,
        "kv_compress_d128_r4_overlap": 21,
        "kv_compress_d512_r128": 20,
        "kv_compress_d512_r4_overlap": 21,
        "mhc_head_hc4_h4096": 0,
        "mhc_post_hc4_h4096": 43,
        "mhc_pre_big_fuse_hc4_h4096_mix24": 43,
        "mhc_prenorm_gemm_n24_k16384": 43,
        "moe_mxfp4_given_topk6_e256_h4096_i2048_limit10": 3,
        "moe_mxfp4_sqrtsoftplus_bias_topk6_e256_h4096_i2048_limit10": 40,
        "moe_routing_sqrtsoftplus_bias_topk6_e256": 40,
    }


def test_the_trace_of_deepseek_v4_shows_every_kernel_of_its_own_and_nothing_beside() -> None:
    entry = get_model("deepseek-v4-flash")
    assert entry.config is not None
    structure = trace_structure(entry.config)
    inventory = build_inventory(load("deepseek-v4-flash"), (ServingPoint(),), structure=structure)
    assert (inventory.unexplained, inventory.disagreements) == ((), ())
    own = [need for need in inventory.needs if need.kernel in V4_KERNELS]
    seen = {need.kernel for need in own if any(item.source == WitnessSource.TRACE for item in need.witnesses)}
    assert seen == set(V4_KERNELS)


def test_tp_cuts_the_heads_of_deepseek_v4_and_neither_its_entries_nor_its_streams() -> None:
    whole, cut = (build_inventory(load("deepseek-v4-flash"), (ServingPoint(tp=tp),)) for tp in (1, 8))
    before, after = ({name_of(need) for need in item.needs if need.kernel in V4_KERNELS} for item in (whole, cut))
    assert sorted(name.partition("_i")[0] for name in after - before) == [
        "dsv4_compressed_attention_h8_d512_win128_all_ps256_cps2",
        "dsv4_compressed_attention_h8_d512_win128_topk512_ps256_cps64",
        "dsv4_window_attention_h8_d512_win128_ps256",
        "moe_mxfp4_given_topk6_e256_h4096",
        "moe_mxfp4_sqrtsoftplus_bias_topk6_e256_h4096",
    ]


def test_constants_of_hyper_connections_are_those_of_the_config() -> None:
    facts = load("deepseek-v4-flash")
    assert facts.hyper_connections is not None
    streams = facts.hyper_connections.model_copy(update={"eps": 1e-4, "sinkhorn_iterations": 7})
    inventory = build_inventory(facts.model_copy(update={"hyper_connections": streams}), (ServingPoint(),))
    (weights,) = (need.parameters for need in inventory.needs if need.kernel == "mhc_pre_big_fuse")
    assert weights == {
        "hc": 4, "hidden_size": 4096, "eps": 1e-6, "hc_eps": 1e-4, "sinkhorn_iters": 7, "post_mult": 2.0
    }  # fmt: skip


def test_a_size_that_a_kernel_type_refuses_is_listed_and_not_needed() -> None:
    facts = load("phi-3.5-moe")
    assert facts.moe is not None
    odd = facts.model_copy(update={"moe": facts.moe.model_copy(update={"intermediate_size": 6401})})
    inventory = build_inventory(odd, (ServingPoint(),), page_sizes=(1,))
    assert [item.operation for item in inventory.unexplained] == ["moe_bf16"]
    assert not [need for need in inventory.needs if need.kernel == "moe_bf16"]


def test_an_architecture_that_sglang_does_not_serve_is_noted() -> None:
    facts = load("llama-3.1-8b").model_copy(update={"architecture": "StrangerForCausalLM"})
    inventory = build_inventory(facts, (ServingPoint(),), sglang=load_bundled_sglang())
    assert any("does not serve StrangerForCausalLM" in note for note in inventory.notes)
