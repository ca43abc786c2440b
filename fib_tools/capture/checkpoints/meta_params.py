"""Meta's `params.json`, and the Llama config that it means.

Llama 3.1 8B: {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256,
"ffn_dim_multiplier": 1.3, "multiple_of": 1024, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": true}

What the fields mean is said by Meta's reference code (`llama/model.py`, class ModelArgs and FeedForward).
Llama 1 and 2 write `"vocab_size": -1`, for the tokenizer's; it is then taken from the embedding's shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from fib_tools.errors import ConfigError, FormatError
from fib_tools.host.files import read_limited
from fib_tools.model.base import Model, read_lenient
from fib_tools.sources.config_text import parse_config

__all__ = ["MetaParams", "make_fields", "read_params"]

_LIMIT = 64 << 10
_SMALL_DIM = 3072
"""Llama 3.2's 1B and 3B have 2048 and 3072; they, unlike the larger models, stretch their rotary waves 32-fold."""
_MIXED = ("moe", "moe_args", "quantization_args", "lora_args", "vision_chunk_size", "vision_num_cross_attention_layers")
"""Fields of models whose layers are other than those of a dense Llama."""


class MetaParams(Model):
    """The fields that say how large a Llama is."""

    dim: int = Field(gt=0)
    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)
    n_kv_heads: int | None = Field(default=None, gt=0)
    """As many as query heads if it is not there: Llama 1, and Llama 2 up to 13B."""
    vocab_size: int = -1
    multiple_of: int = Field(default=256, gt=0)
    ffn_dim_multiplier: float | None = Field(default=None, gt=0)
    norm_eps: float = Field(gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    use_scaled_rope: bool = False
    rope_scaling_factor: float | None = Field(default=None, gt=0)

    @property
    def kv_heads(self) -> int:
        """How many heads keys and values have."""
        return self.n_kv_heads or self.n_heads

    @property
    def intermediate_size(self) -> int:
        """Two thirds of four times `dim`, times a multiplier, rounded up to a multiple."""
        width = int(2 * 4 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return -(-width // self.multiple_of) * self.multiple_of

    @property
    def rope_factor(self) -> float:
        """How far long rotary waves are stretched where `use_scaled_rope` is set."""
        return self.rope_scaling_factor or (32.0 if self.dim <= _SMALL_DIM else 8.0)


def read_params(path: Path) -> MetaParams:
    """Read `params.json`.

    Raises:
        ConfigError: a field is missing or absurd, or the model is no dense Llama.
    """
    fields = parse_config(read_limited(path, _LIMIT), where=str(path))
    other = [name for name in _MIXED if fields.get(name)]
    if other:
        todo = "take the model's safetensors release"
        raise ConfigError(f"{other[0]!r} says that this is no dense Llama", where=str(path), todo=todo)
    try:
        params = read_lenient(MetaParams, fields, where=str(path))
    except FormatError as error:
        raise ConfigError(error.what, where=error.where, todo="take the params.json of the weights") from error
    if params.dim % params.n_heads or params.n_heads % params.kv_heads or params.dim // params.n_heads % 2:
        sizes = f"dim {params.dim}, n_heads {params.n_heads}, n_kv_heads {params.kv_heads}"
        raise ConfigError(f"{sizes} do not divide one another", where=str(path))
    return params


def make_fields(params: MetaParams, *, vocab_size: int, is_tied: bool) -> dict[str, Any]:
    """Write the parameters as a `config.json` of transformers would have them."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": params.rope_theta}
    if params.use_scaled_rope:
        rope |= {
            "rope_type": "llama3",
            "factor": params.rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": params.dim,
        "intermediate_size": params.intermediate_size,
        "num_hidden_layers": params.n_layers,
        "num_attention_heads": params.n_heads,
        "num_key_value_heads": params.kv_heads,
        "rms_norm_eps": params.norm_eps,
        "rope_parameters": rope,
        "max_position_embeddings": 131072 if params.use_scaled_rope else 8192,
        "vocab_size": vocab_size,
        "tie_word_embeddings": is_tied,
    }
