from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fib_tools.capture.overrides import Shares, apply_overrides, cut_layers, cut_sizes
from fib_tools.errors import ParallelismError


def shares(**changes: Any) -> Shares:
    settings = {"attention_tp": 4, "tp": 4, "ep": 1, "num_heads": 8, "num_kv_heads": 2, "head_dim": 128, **changes}
    return Shares(**settings)


def read_kinds(backbone: Mapping[str, Any]) -> list[str]:
    dense = backbone.get("first_k_dense_replace", 0)
    interval = backbone.get("full_attention_interval", 1)
    count = backbone["num_hidden_layers"]
    return [f"{'dense' if i < dense else 'moe'} {'linear' if (i + 1) % interval else 'full'}" for i in range(count)]


def test_paths_lead_into_nested_configs_and_the_original_stays() -> None:
    config = {"text_config": {"num_hidden_layers": 48}, "model_type": "x"}
    changed = apply_overrides(config, {"text_config.num_hidden_layers": 2})
    assert changed == {"text_config": {"num_hidden_layers": 2}, "model_type": "x"}
    assert config["text_config"] == {"num_hidden_layers": 48}


def test_a_whole_model_needs_no_override() -> None:
    assert cut_sizes({"num_attention_heads": 32}, shares(attention_tp=1, tp=1)) == {}


def test_the_width_of_experts_without_a_field_of_their_own_is_that_of_the_mlp() -> None:
    mixtral = {"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "num_local_experts": 8}
    assert cut_sizes(mixtral, shares(ep=2)) == {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 7168,
        "num_local_experts": 4,
    }


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ({"intermediate_size": 4096}, "no field for the number of heads"),
        ({"num_attention_heads": 32, "intermediate_size": 4098}, "intermediate_size=4098 cannot be cut into 4"),
    ],
)
def test_what_no_field_says_is_refused(backbone: dict[str, Any], said: str) -> None:
    with pytest.raises(ParallelismError, match=said):
        cut_sizes(backbone, shares())


def test_layers_are_cut_to_the_shortest_beginning_with_every_kind() -> None:
    backbone = {"num_hidden_layers": 61, "first_k_dense_replace": 3, "mlp_layer_types": ["x"] * 61}
    assert cut_layers(backbone, read_kinds) == {
        "first_k_dense_replace": 1,
        "num_hidden_layers": 2,
        "mlp_layer_types": ["x", "x"],
    }


def test_several_periods_are_shortened_together() -> None:
    backbone = {"num_hidden_layers": 48, "first_k_dense_replace": 4, "full_attention_interval": 4}
    found = cut_layers(backbone, read_kinds)
    assert set(read_kinds({**backbone, **found})) == set(read_kinds(backbone))
    assert found["num_hidden_layers"] <= 6


def test_a_model_whose_every_layer_is_another_is_not_cut() -> None:
    assert cut_layers({"num_hidden_layers": 40}, lambda backbone: list(range(backbone["num_hidden_layers"]))) == {}
