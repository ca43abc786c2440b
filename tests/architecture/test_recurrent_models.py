from __future__ import annotations

from typing import Any

import pytest

from fib_tools.architecture.facts import read_facts
from fib_tools.architecture.facts_schema import MixerKind, MlpKind, ModelFacts
from fib_tools.architecture.fusion_recurrent import cut_recurrent, fuse_recurrent
from fib_tools.architecture.inventory import Inventory, build_inventory
from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.architecture.quantization import QuantizationFacts, QuantizationScheme
from fib_tools.architecture.structure_schema import LayerGroup, OpCall, OpKind, Stage, Structure
from fib_tools.errors import ConfigError
from fib_tools.model.kernel import KernelNeed
from fib_tools.op_types.registry import get_kernel_type

PLAIN: dict[str, Any] = {
    "architectures": ["StrangerForCausalLM"],
    "model_type": "stranger",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
KIMI: dict[str, Any] = {
    **PLAIN,
    "architectures": ["KimiLinearForCausalLM"],
    "model_type": "kimi_linear",
    "head_dim": None,
    "num_key_value_heads": 4,
    "linear_attn_config": {"kda_layers": [1, 2, 3], "num_heads": 4, "head_dim": 128, "short_conv_kernel_size": 4},
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
NEMOTRON: dict[str, Any] = {
    **PLAIN,
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "MM*-",
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 32,
    "conv_kernel": 4,
    "use_conv_bias": False,
    "chunk_size": 128,
    "mamba_proj_bias": True,
}
QWEN: dict[str, Any] = {
    **PLAIN,
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
MINIMAX: dict[str, Any] = {
    **PLAIN,
    "architectures": ["MiniMaxForCausalLM"],
    "model_type": "minimax",
    "attn_type_list": [0, 0, 0, 1],
    "block_size": 256,
}
MOE: dict[str, Any] = {**PLAIN, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
BLOCK: dict[str, Any] = {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}}
DECILM: dict[str, Any] = {**PLAIN, "model_type": "nemotron-nas", "num_hidden_layers": 1}


def read(config: dict[str, Any], **changes: Any) -> ModelFacts:
    return read_facts({**config, **changes}, name="tiny")


def store(facts: ModelFacts, scheme: QuantizationScheme, **given: Any) -> ModelFacts:
    return facts.model_copy(update={"quantization": QuantizationFacts(scheme=scheme, **given)})


def build(facts: ModelFacts, *, structure: Structure | None = None, **point: Any) -> Inventory:
    return build_inventory(facts, (ServingPoint(**point),), structure=structure, page_sizes=(1,))


def by_name(inventory: Inventory) -> dict[str, KernelNeed]:
    return {get_kernel_type(need.kernel).build(need.parameters).name: need for need in inventory.needs}


def mixers(config: dict[str, Any], **changes: Any) -> list[MixerKind]:
    return [layer.mixer for layer in read(config, **changes).layers]


def mlps(**changes: Any) -> list[MlpKind]:
    return [layer.mlp for layer in read(MOE, **changes).layers]


def trace(*ops: OpCall) -> Structure:
    return Structure(
        transformers_version="5",
        architecture="StrangerForCausalLM",
        model_type="stranger",
        layer_groups=(LayerGroup(count=4, example=0, layers=(0, 1, 2, 3), path="model.layers"),),
        ops=ops,
        parameter_count=1,
        prefill_tokens=7,
    )


def call(operation: OpKind, module: str, /, **attributes: Any) -> OpCall:
    group = 0 if "*" in module else None
    return OpCall(id=0, kind=operation, stage=Stage.PREFILL, module=module, group=group, attributes=attributes)


def test_kimi_linear_counts_its_kda_layers_from_one() -> None:
    facts = read(KIMI)
    assert [layer.attention for layer in facts.layers] == ["kda", "kda", "kda", "full"]
    linear = facts.linears["kda"]
    assert (linear.num_key_heads, linear.num_value_heads) == (4, 4)
    assert (linear.key_head_dim, linear.value_head_dim, linear.conv_width) == (128, 128, 4)
    assert linear.norm_group_size == 128


@pytest.mark.parametrize("field", ["num_heads", "head_dim", "short_conv_kernel_size"])
def test_a_size_that_the_kda_section_lacks_is_named_with_its_path(field: str) -> None:
    section = {name: value for name, value in KIMI["linear_attn_config"].items() if name != field}
    with pytest.raises(ConfigError) as error:
        read(KIMI, linear_attn_config=section)
    assert f"linear_attn_config.{field}" in str(error.value)


def test_the_sizes_of_kda_are_traced_to_the_fields_of_their_section() -> None:
    provenance = read(KIMI).provenance
    assert provenance["linears.kda.num_key_heads"] == "linear_attn_config.num_heads=4"
    assert provenance["linears.kda.conv_width"] == "linear_attn_config.short_conv_kernel_size=4"


def test_kda_layers_without_their_section_are_refused() -> None:
    with pytest.raises(ConfigError, match="linear_attn_config"):
        read(KIMI, linear_attn_config=None, layer_types=["linear_attention"] * 4)


def test_kimi_linear_cuts_heads_and_keeps_the_low_rank_of_the_gates_whole() -> None:
    inventory = build(read(KIMI), tp=4)
    found = by_name(inventory)
    assert {"kda_decode_h1_d128", "kda_prefill_h1_d128", "rmsnorm_gated_sigmoid_h128"} <= found.keys()
    assert {"causal_conv1d_decode_c384_w4", "gemm_n384_k64", "gemm_n128_k128", "gemm_n1_k64"} <= found.keys()
    assert found["gemm_n128_k64"].module == "model.layers.*.self_attn.f_a_proj, model.layers.*.self_attn.g_a_proj"
    assert found["kda_decode_h1_d128"].layers == 3
    assert found["kda_decode_h1_d128"].stages == ("decode",)
    assert (inventory.unexplained, inventory.refused) == ((), ())


def test_nemotron_h_reads_mamba2_and_its_optional_fields() -> None:
    linear = read(NEMOTRON).linears["mamba2"]
    assert (linear.num_key_heads, linear.num_value_heads) == (2, 8)
    assert (linear.key_head_dim, linear.value_head_dim, linear.norm_group_size) == (32, 16, 64)
    assert (linear.conv_bias, linear.has_projection_bias, linear.chunk_size) == (False, True, 128)
    bare = read(NEMOTRON, use_conv_bias=None, mamba_proj_bias=None, chunk_size=None).linears["mamba2"]
    assert (bare.conv_bias, bare.has_projection_bias, bare.chunk_size) == (True, False, None)


def test_nemotron_h_names_its_mixers_as_the_checkpoint_does() -> None:
    found = by_name(build(read(NEMOTRON)))
    assert found["gemm_bias_n392_k64"].module == "model.layers.*.mixer.in_proj"
    assert found["gemm_bias_n64_k128"].module == "model.layers.*.mixer.out_proj"
    assert found["gemm_n128_k64"].module == "model.layers.*.mixer.qkv_proj, lm_head"
    assert found["mamba_chunk_scan_h8_d16_s32_ng2"].parameters["chunk_size"] == 128
    assert found["rmsnorm_gated_gate_first_h128_g64"].layers == 2


def test_mamba2_groups_that_do_not_divide_are_replicated_and_their_norm_is_open() -> None:
    inventory = build(read(NEMOTRON), tp=4)
    found = by_name(inventory)
    assert {"mamba_ssu_decode_h2_d16_s32_ng1", "gemm_bias_n130_k64"} <= found.keys()
    assert [(item.operation, item.module) for item in inventory.unexplained] == [
        ("rmsnorm_gated", "model.layers.*.mixer.norm")
    ]


def test_mamba2_groups_must_divide_its_heads() -> None:
    with pytest.raises(ConfigError, match="3 does not divide 8 heads"):
        read(NEMOTRON, n_groups=3)


def test_an_unknown_hybrid_with_other_field_names_is_read_as_mamba2() -> None:
    names = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 32, "mamba_d_conv": 4}
    facts = read(PLAIN, **names, layer_types=["mamba", "mamba", "mamba", "attention"])
    assert not facts.is_known
    assert facts.provenance["linears.mamba2.num_value_heads"] == "mamba_n_heads=8"
    assert by_name(build(facts))["mamba_ssu_decode_h8_d16_s32_ng1"].layers == 3


def test_qwen3_next_repeats_full_attention_at_its_interval() -> None:
    assert mixers(QWEN) == [MixerKind.GDN, MixerKind.GDN, MixerKind.GDN, MixerKind.FULL]
    assert mixers(QWEN, full_attention_interval=2) == [MixerKind.GDN, MixerKind.FULL] * 2


def test_value_heads_of_a_delta_net_are_a_multiple_of_its_key_heads() -> None:
    with pytest.raises(ConfigError, match="4 is no multiple of linear_num_key_heads=3"):
        read(QWEN, linear_num_key_heads=3)


def test_key_heads_of_a_delta_net_that_tp_does_not_divide_refuse_the_point() -> None:
    (refusal,) = build(read(QWEN), tp=4).refused
    assert "key heads of linear attention=2 cannot be cut by TP 4" in refusal.reason


def test_a_delta_net_with_heads_of_two_widths_has_no_kernel_and_keeps_its_projections() -> None:
    inventory = build(read(QWEN, linear_key_head_dim=64))
    assert [(item.operation, item.detail) for item in inventory.unexplained] == [
        ("gated_delta_rule", "key and value heads of different width")
    ]
    kernels = {need.kernel for need in inventory.needs}
    assert "causal_conv1d_decode" in kernels
    assert not [kernel for kernel in kernels if kernel.startswith("gdn")]
    assert "gemm_n1280_k64" in by_name(inventory)


def test_a_delta_net_without_a_convolution_needs_none() -> None:
    facts = read(QWEN)
    plain = facts.linears["gdn"].model_copy(update={"conv_width": 0})
    kernels = {need.kernel for need in build(facts.model_copy(update={"linears": {"gdn": plain}})).needs}
    assert "gdn_decode" in kernels
    assert not [kernel for kernel in kernels if kernel.startswith("causal_conv1d")]


def test_a_delta_net_verifies_drafts_only_where_there_are_some() -> None:
    facts = read(QWEN)
    assert "gdn_mtp_qk2_v4_d128_k_last" in by_name(build(facts, draft_tokens=4))
    assert "gdn_mtp_qk2_v4_d128_k_last" not in by_name(build(facts))


@pytest.mark.parametrize(
    "changes",
    [{}, {"attn_type_list": None, "layer_types": [*["linear_attention"] * 3, "full_attention"]}, {"head_dim": None}],
)
def test_lightning_attention_is_read_and_left_unexplained(changes: dict[str, Any]) -> None:
    facts = read(MINIMAX, **changes)
    linear = facts.linears["lightning"]
    assert (linear.num_key_heads, linear.key_head_dim, linear.chunk_size) == (4, 16, 256)
    (gap,) = build(facts).unexplained
    assert (gap.operation, gap.module) == ("linear_attention", "model.layers.*.self_attn")
    assert fuse_recurrent(linear, facts, key="lightning", tp=1) == ()


def test_the_share_of_a_gpu_counts_the_channels_of_its_convolution() -> None:
    share = cut_recurrent(read(QWEN).linears["gdn"], 2)
    assert (share.key_heads, share.value_heads, share.conv_channels) == (1, 2, 2 * 128 + 2 * 128)


def test_parts_that_are_quantised_differently_are_separate_gemms() -> None:
    facts = store(read(KIMI), QuantizationScheme.FP8_CHANNEL, excluded=(r".*\.q_proj", "lm_head"))
    inventory = build(facts)
    kernels = {(need.kernel, module) for need in inventory.needs for module in need.module.split(", ")}
    prefix = "model.layers.*.self_attn"
    assert ("gemm", f"{prefix}.q_proj") in kernels
    assert {("gemm_fp8_channel", f"{prefix}.{name}_proj") for name in "kv"} <= kernels
    assert not [module for _, module in kernels if module.endswith(".qkv_proj")]
    assert "qkv_proj: its parts are quantised differently, so they are separate GEMMs" in inventory.notes
    assert any("per-token quantisation of activations has no kernel type" in note for note in inventory.notes)


def test_a_bias_of_a_quantised_projection_is_added_apart() -> None:
    inventory = build(store(read(NEMOTRON), QuantizationScheme.FP8_CHANNEL))
    assert "in_proj: the bias is added after the fp8_channel GEMM" in inventory.notes


def test_four_bit_projections_leave_activations_and_the_gates_of_a_delta_net_alone() -> None:
    inventory = build(store(read(QWEN), QuantizationScheme.W4A16, group_size=32, excluded=("lm_head",)))
    groups = {need.parameters["group_size"] for need in inventory.needs if need.kernel == "gemm_w4a16"}
    assert groups == {32}
    assert by_name(inventory)["gemm_n8_k64"].module == "model.layers.*.linear_attn.in_proj_ba"
    assert not [need for need in inventory.needs if "quantize" in need.kernel]
    assert not [note for note in inventory.notes if "per-token" in note]


def test_a_scheme_without_a_gemm_is_listed_for_each_projection() -> None:
    inventory = build(store(read(QWEN), QuantizationScheme.INT8))
    gaps = {item.module: item.detail for item in inventory.unexplained if item.operation == "gemm"}
    assert gaps["model.layers.*.linear_attn.in_proj_qkvz"] == "no kernel type for int8 weights"
    assert "model.layers.*.linear_attn.in_proj_ba" not in gaps


def test_a_trace_names_the_norms_and_linears_of_an_unknown_architecture() -> None:
    ops = (
        call(OpKind.NORM, "model.layers.*.odd_norm", kind="rmsnorm", size=48, eps=1e-6),
        call(OpKind.LINEAR, "model.layers.*.odd", n=40, k=48, bias=True),
        call(OpKind.LINEAR, "model.layers.*.shapeless", k=50),
    )
    inventory = build(read(PLAIN), structure=trace(*ops), tp=2)
    found = {need.module: need for need in inventory.needs}
    assert found["model.layers.*.odd_norm"].parameters == {"hidden_size": 48, "eps": 1e-6}
    assert found["model.layers.*.odd"].parameters == {"n": 40, "k": 48, "bias": True}
    assert found["model.layers.*.odd"].layers == 4
    assert any(note.startswith("model.layers.*.odd: the trace does not tell how it is cut") for note in inventory.notes)
    assert [item.module for item in inventory.unexplained] == ["model.layers.*.shapeless"]


def test_a_traced_rope_without_attention_heads_stays_open() -> None:
    names = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 32, "mamba_d_conv": 4}
    facts = read(PLAIN, **names, layer_types=["mamba"] * 4)
    assert facts.attentions == {}
    rope = call(OpKind.ROPE, "model.layers.*.mixer", head_dim=16, rotary_dim=16, is_neox=True)
    inventory = build(facts, structure=trace(rope))
    assert [item.operation for item in inventory.unexplained] == ["rope"]
    assert not [need for need in inventory.needs if need.kernel.startswith("rope")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**NEMOTRON, "hybrid_override_pattern": "M*"}, "2 letters, but num_hidden_layers is 4"),
        ({**NEMOTRON, "hybrid_override_pattern": "M*?X"}, r"letters that mean nothing: '\?X'"),
        ({**DECILM, "block_configs": []}, "0 entries, but num_hidden_layers is 1"),
        ({**DECILM, "block_configs": ["x"]}, r"block_configs\[0\]"),
        ({**DECILM, "block_configs": [{"attention": {}}]}, r"block_configs\[0\]"),
        (
            {**DECILM, "block_configs": [{**BLOCK, "ffn": {"replace_with_linear": True}}]},
            r"block_configs\[0\]\.ffn\.replace_with_linear",
        ),
        ({**DECILM, "block_configs": [{**BLOCK, "attention": {"n_heads_in_group": 3}}]}, "3 does not divide 4 heads"),
        ({**PLAIN, "hybrid_layer_pattern": [0, 1, 2, 0]}, "not a list of 0 and 1"),
        ({**MINIMAX, "attn_type_list": [True, 0, 0, 1]}, "not a list of 0 and 1"),
        ({**MINIMAX, "attn_type_list": [0, 1]}, "2 entries, but there are 4 layers"),
        ({**PLAIN, "compress_ratios": [0, 4, 5, 128]}, r"not a list of \[0, 4, 128\]"),
        ({**MOE, "n_group": 3}, "3 groups do not divide 8 experts"),
        ({**MOE, "scoring_func": "telepathy"}, "a routing that is not known here: 'telepathy'"),
    ],
)
def test_a_plan_of_layers_that_means_nothing_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(config)


def test_decilm_layers_may_lack_attention_or_a_feed_forward() -> None:
    blocks = [{"attention": {"no_op": True}, "ffn": {"ffn_mult": 2.0}}, {**BLOCK, "ffn": {"no_op": True}}]
    idle, bare = read(DECILM, num_hidden_layers=2, block_configs=blocks).layers
    assert (idle.attention, idle.mlp, idle.intermediate_size) == (None, MlpKind.DENSE, 256)
    assert (bare.attention, bare.mlp, bare.intermediate_size) == ("full_kv2", MlpKind.NONE, None)


def test_llama_4_takes_listed_rope_layers_before_its_interval() -> None:
    sizes = {"attention_chunk_size": 32, "no_rope_layers": [1, 0, 1, 0], "model_type": "llama4_text"}
    assert mixers(PLAIN, **sizes) == [MixerKind.CHUNKED, MixerKind.FULL] * 2


@pytest.mark.parametrize(
    ("changes", "sliding"),
    [
        ({"model_type": "gemma2"}, [0, 2]),
        ({"model_type": "exaone4", "sliding_window_pattern": "LLG"}, [0, 1, 3]),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 2}, [0, 2]),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 3}, [3]),
        ({"model_type": "qwen2", "use_sliding_window": False, "max_window_layers": 3}, []),
        ({"model_type": "qwen2", "max_window_layers": 3}, []),
        ({"model_type": "stranger"}, [0, 1, 2, 3]),
    ],
)
def test_a_window_slides_in_the_layers_that_its_family_names(changes: dict[str, Any], sliding: list[int]) -> None:
    kinds = mixers(PLAIN, sliding_window=32, max_position_embeddings=512, **changes)
    assert [index for index, kind in enumerate(kinds) if kind is MixerKind.SLIDING] == sliding


def test_exaone_4_without_a_window_has_rope_everywhere() -> None:
    attentions = read(PLAIN, model_type="exaone4").attentions
    assert list(attentions) == ["full"]
    assert attentions["full"].rope is not None
    windowed = read(PLAIN, model_type="exaone4", sliding_window=32, sliding_window_pattern="LLG").attentions
    assert windowed["sliding"].rope is not None
    assert windowed["full_nope"].rope is None


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({}, []),
        ({"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]}, [0, 2]),
        ({"moe_layer_freq": [0, 1, 1, 1]}, [0]),
        ({"moe_layer_freq": 2}, [1, 3]),
        ({"first_k_dense_replace": 2}, [0, 1]),
        ({"mlp_only_layers": [1]}, [1]),
        ({"decoder_sparse_step": 2}, [0, 2]),
        ({"interleave_moe_layer_step": 4}, [0, 1, 2]),
        ({"num_experts": 0}, [0, 1, 2, 3]),
    ],
)
def test_experts_are_in_the_layers_that_the_config_names(changes: dict[str, Any], dense: list[int]) -> None:
    assert [index for index, kind in enumerate(mlps(**changes)) if kind is MlpKind.DENSE] == dense


@pytest.mark.parametrize(
    ("changes", "routing"),
    [
        ({}, "renormalize"),
        ({"norm_topk_prob": False}, "default"),
        ({"scoring_func": "softmax", "n_group": 2, "topk_group": 1}, "softmax_group"),
        ({"scoring_func": "sigmoid"}, "sigmoid"),
        ({"scoring_func": "sigmoid", "use_routing_bias": True}, "sigmoid_bias"),
        ({"topk_method": "noaux_tc", "n_group": 2, "topk_group": 1}, "ds"),
    ],
)
def test_the_routing_follows_from_scores_groups_and_bias(changes: dict[str, Any], routing: str) -> None:
    moe = read(MOE, **changes).moe
    assert moe is not None
    assert moe.routing == routing


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0, 0)),
        ({"n_shared_experts": 2}, (2, 64)),
        ({"shared_expert_intermediate_size": 48}, (1, 48)),
        ({"shared_expert_intermediate_size": 0, "n_shared_experts": 1}, (0, 0)),
    ],
)
def test_the_width_of_shared_experts_is_given_or_a_multiple(changes: dict[str, Any], expected: tuple[int, int]) -> None:
    moe = read(MOE, **changes).moe
    assert moe is not None
    assert (moe.num_shared_experts, moe.shared_intermediate_size) == expected
