from __future__ import annotations

from typing import Any

import pytest

from fib_tools.architecture.facts import read_facts
from fib_tools.architecture.quantization import QuantizationFacts, QuantizationScheme, QuantizationWitness
from fib_tools.errors import ConfigError

PLAIN: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
}


def _read(section: dict[str, Any] | None, *, name: str = "org/model", **more: Any) -> QuantizationFacts:
    config = PLAIN if section is None else {**PLAIN, "quantization_config": section}
    return read_facts(config, name=name, **more).quantization


@pytest.mark.parametrize(
    ("section", "scheme", "group"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, QuantizationScheme.FP8_BLOCK, 128),
        ({"quant_method": "fp8"}, QuantizationScheme.FP8_TENSOR, None),
        ({"quant_method": "mxfp4"}, QuantizationScheme.MXFP4, 32),
        ({"quant_method": "awq", "group_size": 64}, QuantizationScheme.W4A16, 64),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, QuantizationScheme.NVFP4, 16),
        ({"quant_method": "from_the_future"}, QuantizationScheme.UNKNOWN, None),
    ],
)
def test_each_tool_s_words_name_a_scheme(
    section: dict[str, Any], scheme: QuantizationScheme, group: int | None
) -> None:
    facts = _read(section)
    assert (facts.scheme, facts.group_size) == (scheme, group)
    assert facts.witness is QuantizationWitness.CONFIG


@pytest.mark.parametrize(
    ("weights", "scheme"),
    [
        ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}, QuantizationScheme.W4A16),
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, QuantizationScheme.FP8_CHANNEL),
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, QuantizationScheme.FP8_TENSOR),
        ({"num_bits": 8, "type": "float", "strategy": "block"}, QuantizationScheme.FP8_BLOCK),
        ({"num_bits": 4, "type": "float", "strategy": "tensor_group"}, QuantizationScheme.NVFP4),
        ({"num_bits": 8, "type": "int", "strategy": "channel"}, QuantizationScheme.INT8),
    ],
)
def test_compressed_tensors_is_read_by_bits_type_and_strategy(
    weights: dict[str, Any], scheme: QuantizationScheme
) -> None:
    section = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    assert _read(section).scheme is scheme


def test_ignore_patterns_leave_modules_unquantised() -> None:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    facts = _read(
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": weights}},
            "ignore": ["lm_head", "re:.*self_attn.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
        }
    )
    assert facts.get_scheme("model.layers.3.self_attn.o_proj") is QuantizationScheme.NONE
    assert facts.get_scheme("model.layers.0.mlp.gate_proj") is QuantizationScheme.NONE
    assert facts.get_scheme("model.layers.3.mlp.experts.0.gate_proj") is QuantizationScheme.W4A16


def test_routers_and_heads_stay_unquantised_though_the_config_does_not_say_so() -> None:
    facts = _read({"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert facts.get_scheme("model.layers.3.mlp.gate") is QuantizationScheme.NONE
    assert facts.get_scheme("lm_head") is QuantizationScheme.NONE
    assert facts.get_scheme("model.layers.3.mlp.gate_proj") is QuantizationScheme.FP8_BLOCK


def test_a_star_in_a_module_name_stands_for_any_layer() -> None:
    facts = _read({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})
    assert facts.get_scheme("model.layers.17.self_attn.q_proj") is QuantizationScheme.NONE


def test_a_name_is_a_weak_witness() -> None:
    facts = _read(None, name="nvidia/Qwen3-30B-A3B-NVFP4")
    assert (facts.scheme, facts.witness) == (QuantizationScheme.NVFP4, QuantizationWitness.NAME)
    assert _read(None, name="org/nvfp4ever").scheme is QuantizationScheme.NONE


def test_hf_quant_config_is_read_where_the_config_is_silent() -> None:
    facts = _read(None, hf_quant_config={"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}})
    assert (facts.scheme, facts.witness) == (QuantizationScheme.FP8_TENSOR, QuantizationWitness.HF_QUANT_CONFIG)
    assert facts.kv_cache == "fp8"


def test_a_pattern_that_could_backtrack_for_ever_is_taken_literally() -> None:
    section = {
        "quant_method": "compressed-tensors",
        "ignore": ["re:(a+)+$", "re:(", "re:" + "(a|a)" * 60 + "c", "re:" + ".*a" * 60 + "c"],
    }
    facts = _read(section)
    assert facts.get_scheme("a" * 5000 + "b") is QuantizationScheme.UNKNOWN


@pytest.mark.parametrize("entry", [7, None, "x" * 1000])
def test_an_absurd_pattern_is_refused(entry: Any) -> None:
    with pytest.raises(ConfigError, match="module patterns"):
        _read({"quant_method": "fp8", "modules_to_not_convert": [entry]})
