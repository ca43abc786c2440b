from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.checkpoints.meta_params import make_fields, read_params
from fib_tools.errors import ConfigError
from fib_tools.sources.registry import get_model

LLAMA_2_7B = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1}
LLAMA_31_8B = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "ffn_dim_multiplier": 1.3,
    "multiple_of": 1024,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
}
LLAMA_31_70B = LLAMA_31_8B | {"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096}
LLAMA_32_1B = LLAMA_31_8B | {"dim": 2048, "n_layers": 16, "ffn_dim_multiplier": 1.5, "multiple_of": 256}


def _read(tmp_path: Path, fields: dict[str, Any]) -> Any:
    path = tmp_path / "params.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return read_params(path)


@pytest.mark.parametrize(("slug", "params"), [("llama-3.1-8b", LLAMA_31_8B), ("llama-3.1-70b", LLAMA_31_70B)])
def test_parameters_mean_what_the_published_config_says(tmp_path: Path, slug: str, params: dict[str, Any]) -> None:
    published = get_model(slug).config or {}
    fields = make_fields(_read(tmp_path, params), vocab_size=128256, is_tied=False)
    rope = dict(fields.pop("rope_parameters"))
    assert rope.pop("rope_theta") == published["rope_theta"]
    assert rope == published["rope_scaling"]
    assert {name: published[name] for name in fields} == fields


def test_small_models_stretch_their_rotary_waves_further(tmp_path: Path) -> None:
    fields = make_fields(_read(tmp_path, LLAMA_32_1B), vocab_size=128256, is_tied=True)
    assert fields["rope_parameters"]["factor"] == 32.0
    assert fields["intermediate_size"] == 8192


def test_old_parameters_have_as_many_key_heads_as_query_heads(tmp_path: Path) -> None:
    params = _read(tmp_path, LLAMA_2_7B)
    assert (params.kv_heads, params.intermediate_size, params.rope_theta) == (32, 11008, 10000.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim"),
        ({"n_heads": None}, "n_heads"),
        ({"n_heads": 33}, "n_heads 33"),
        ({"n_kv_heads": 5}, "n_kv_heads 5"),
        ({"norm_eps": -1.0}, "norm_eps"),
        ({"moe_args": {"num_experts": 16}}, "'moe_args' says that this is no dense Llama"),
    ],
)
def test_absurd_parameters_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _read(tmp_path, LLAMA_31_8B | change)
