from __future__ import annotations

import json
from typing import Any

import pytest

from fib_tools.architecture.structure import ENTRY, PRELOAD, trace, trace_structure
from fib_tools.architecture.structure_schema import NotTraceable, OpCall, OpKind, Stage, Structure
from fib_tools.host.sandbox import Sandbox
from fib_tools.sources.registry import get_model

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def _trace(config: dict[str, Any]) -> Structure:
    structure = trace_structure(config)
    assert isinstance(structure, Structure), structure
    return structure


def _trace_bundled(slug: str) -> Structure:
    config = get_model(slug).config
    assert config is not None
    return _trace(config)


def _ops(structure: Structure, kind: OpKind, *, stage: Stage = Stage.PREFILL) -> list[OpCall]:
    return [op for op in structure.ops if op.kind is kind and op.stage is stage]


@pytest.fixture(scope="module")
def llama() -> Structure:
    return _trace(LLAMA)


def test_each_linear_has_a_role_a_size_and_a_path_without_layer_numbers(llama: Structure) -> None:
    linears = [(op.role, op.module, op.attributes["n"], op.attributes["k"]) for op in _ops(llama, OpKind.LINEAR)]
    assert linears == [
        ("q", "model.layers.*.self_attn.q_proj", 64, 64),
        ("k", "model.layers.*.self_attn.k_proj", 32, 64),
        ("v", "model.layers.*.self_attn.v_proj", 32, 64),
        ("o", "model.layers.*.self_attn.o_proj", 64, 64),
        ("gate", "model.layers.*.mlp.gate_proj", 96, 64),
        ("up", "model.layers.*.mlp.up_proj", 96, 64),
        ("down", "model.layers.*.mlp.down_proj", 64, 96),
        ("lm_head", "lm_head", 128, 64),
    ]


def test_linears_that_read_the_same_tensor_share_their_source(llama: Structure) -> None:
    sources = {op.role: op.source for op in _ops(llama, OpKind.LINEAR)}
    assert sources["q"] == sources["k"] == sources["v"]
    assert sources["gate"] == sources["up"]
    assert len({sources["q"], sources["gate"], sources["o"], sources["down"], sources["lm_head"]}) == 5


def test_alike_layers_are_one_group_whose_example_follows_a_residual_add(llama: Structure) -> None:
    assert [(group.count, group.example, group.layers) for group in llama.layer_groups] == [(3, 1, (0, 1, 2))]
    norms = _ops(llama, OpKind.NORM)
    assert [(op.module, op.attributes["follows_add"]) for op in norms] == [
        ("model.layers.*.input_layernorm", True),
        ("model.layers.*.post_attention_layernorm", True),
        ("model.norm", True),
    ]
    assert {op.attributes["eps"] for op in norms} == {1e-5}
    assert llama.count_layers(norms[0]) == 3
    assert llama.count_layers(norms[2]) == 0


def test_rope_and_attention_are_seen_in_both_stages(llama: Structure) -> None:
    for stage, tokens in ((Stage.PREFILL, llama.prefill_tokens), (Stage.DECODE, 1)):
        (rope,) = _ops(llama, OpKind.ROPE, stage=stage)
        (attention,) = _ops(llama, OpKind.ATTENTION, stage=stage)
        assert (rope.attributes["rotary_dim"], rope.attributes["is_neox"]) == (16, True)
        assert (attention.attributes["heads"], attention.attributes["kv_heads"]) == (4, 2)
        assert attention.attributes["sm_scale"] == 0.25
        assert attention.inputs[0].shape == (1, 4, tokens, 16)
        assert attention.id in rope.feeds


def test_parameters_are_counted_at_full_depth(llama: Structure) -> None:
    layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert llama.parameter_count == 2 * 128 * 64 + 3 * layer + 64


def test_nothing_heavy_is_left_unexplained(llama: Structure) -> None:
    assert llama.unexplained == ()


def test_attention_outside_the_registry_is_reported_by_the_guard() -> None:
    structure = _trace(
        {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "num_hidden_layers": 2, "n_head": 4, "vocab_size": 128}
    )
    assert {found.operation for found in structure.unexplained} >= {"aten._softmax", "aten.bmm"}


def test_a_window_is_learned_from_the_mask() -> None:
    structure = _trace(
        {
            **LLAMA,
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": 40,
            "head_dim": 16,
        }
    )
    assert [op.attributes["window"] for op in _ops(structure, OpKind.ATTENTION)] == [40]


def test_kimi_k2_shows_low_rank_projections_and_its_experts() -> None:
    structure = _trace_bundled("kimi-k2")
    moe = [op for op in structure.ops if op.group == 1 and op.stage is Stage.PREFILL]
    sizes = {op.role: (op.attributes["n"], op.attributes["k"]) for op in moe if op.kind is OpKind.LINEAR}
    assert [group.count for group in structure.layer_groups] == [1, 60]
    assert sizes["q_a"] == (1536, 7168)
    assert sizes["q_b"] == (64 * 192, 1536)
    assert sizes["kv_a"] == (576, 7168)
    assert sizes["kv_b"] == (64 * 256, 512)
    assert sizes["router"] == (384, 7168)
    experts = {op.role: op.attributes for op in moe if op.kind is OpKind.GROUPED_LINEAR}
    assert (experts["expert_gate_up"]["experts"], experts["expert_gate_up"]["n"]) == (384, 4096)
    assert (experts["expert_down"]["n"], experts["expert_down"]["k"]) == (7168, 2048)
    (routing,) = [op for op in moe if op.kind is OpKind.ROUTING]
    assert (routing.attributes["routing"], routing.attributes["top_k"]) == ("sigmoid_bias", 8)
    assert structure.unexplained == ()


@pytest.mark.parametrize(
    ("slug", "routing"),
    [
        ("qwen3-30b-a3b", "renormalize"),
        ("gpt-oss-20b", "renormalize"),
        ("deepseek-v2-lite", "default"),
        ("deepseek-v3", "ds"),
        ("phi-3.5-moe", "sparsemixer"),
        ("llama-4-scout-17b-16e", "llama4"),
        ("minimax-m2.7", "sigmoid_bias"),
    ],
)
def test_the_order_of_router_operations_tells_the_routing(slug: str, routing: str) -> None:
    calls = _ops(_trace_bundled(slug), OpKind.ROUTING)
    assert {call.attributes["routing"] for call in calls} == {routing}


def test_gemma_norms_and_gated_norms_are_told_by_their_behaviour() -> None:
    norms = _ops(_trace_bundled("qwen3-next-80b-a3b"), OpKind.NORM)
    kinds = {op.module: op.attributes["kind"] for op in norms}
    assert kinds["model.layers.*.input_layernorm"] == "gemma_rmsnorm"
    assert kinds["model.layers.*.linear_attn.norm"] == "rmsnorm_gated"
    assert kinds["model.layers.*.self_attn.q_norm"] == "gemma_rmsnorm"


def test_linear_attention_and_its_convolution_are_one_call_each() -> None:
    structure = _trace_bundled("nemotron-3-nano-30b-a3b")
    for stage in (Stage.PREFILL, Stage.DECODE):
        assert len(_ops(structure, OpKind.CONV1D, stage=stage)) == 1
        assert len(_ops(structure, OpKind.LINEAR_ATTENTION, stage=stage)) == 1
    (gated,) = [op for op in _ops(structure, OpKind.NORM) if op.attributes["kind"] == "rmsnorm_gated"]
    assert (gated.attributes["gate_first"], gated.attributes["group_size"]) == (True, 512)


def test_the_indexer_of_sparse_attention_is_explained_by_what_it_feeds() -> None:
    structure = _trace_bundled("deepseek-v3.2")
    assert structure.unexplained == ()
    index = _ops(structure, OpKind.SPARSE_INDEX)
    assert {op.attributes["head_dim"] for op in index} == {128}
    assert {op.module.rpartition(".")[2] for op in structure.ops if op.role == "indexer"} == {
        "wq_b",
        "wk",
        "weights_proj",
    }


def test_a_model_without_a_class_is_not_traceable_and_says_why() -> None:
    nameless = trace_structure({**LLAMA, "model_type": "no_such_type"})
    assert nameless == NotTraceable(model_type="no_such_type", reason="transformers has no model_type 'no_such_type'")
    decilm = get_model("llama-3.3-nemotron-super-49b").config
    assert decilm is not None
    assert isinstance(trace_structure(decilm), NotTraceable)


@pytest.mark.parametrize("change", [{"hidden_size": 65}, {"num_hidden_layers": "three"}, {"hidden_act": "telepathy"}])
def test_a_config_that_transformers_refuses_is_an_answer_not_a_crash(change: dict[str, Any]) -> None:
    answer = trace_structure({**LLAMA, **change})
    assert isinstance(answer, NotTraceable)
    assert answer.reason.startswith("transformers cannot build it")


def test_a_config_with_absurdly_many_layers_is_not_built() -> None:
    answer = trace_structure({**LLAMA, "num_hidden_layers": 10**9})
    assert isinstance(answer, NotTraceable)
    assert "more than 2000 layers" in answer.reason


def test_the_config_that_was_given_stays_as_it_was() -> None:
    config = get_model("qwen2.5-vl-7b").config
    assert config is not None
    before = json.dumps(config)
    trace_structure(config)
    assert json.dumps(config) == before


def test_remote_code_of_a_config_is_never_looked_at() -> None:
    config = {**LLAMA, "auto_map": {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}}
    assert _trace(config).architecture == "LlamaForCausalLM"


def test_the_same_config_gives_the_same_structure_but_for_the_time() -> None:
    first, second = (trace({"config": LLAMA}) for _ in range(2))
    assert {**first, "seconds": None} == {**second, "seconds": None}


def test_tracing_leaves_transformers_as_it_was() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama import modeling_llama

    before = modeling_llama.apply_rotary_pos_emb
    _trace(LLAMA)
    assert modeling_llama.apply_rotary_pos_emb is before
    assert "fib_trace" not in ALL_ATTENTION_FUNCTIONS.valid_keys()


def test_the_sandbox_gives_the_same_answer(llama: Structure) -> None:
    with Sandbox(preload=PRELOAD) as sandbox:
        answer = sandbox.run(ENTRY, {"config": LLAMA})
    assert {**answer, "seconds": None} == {**llama.model_dump(mode="json"), "seconds": None}
