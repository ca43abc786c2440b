"""The metadata of a GGUF file, and the transformers config that it means.

A Llama: general.architecture = "llama", llama.block_count = 32, llama.embedding_length = 4096,
llama.attention.head_count = 32, llama.attention.head_count_kv = 8, llama.rope.freq_base = 500000.0, ...
The names are those of ggml/docs/gguf.md; the field that each becomes is transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.errors import ConfigError, FormatError

__all__ = ["ARCHITECTURES", "make_fields"]

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "deepseek2": "deepseek_v2",
}
"""llama.cpp's name of an architecture, and transformers' model_type; a llama with experts is a mixtral.

Its `deepseek2` is DeepSeek-V3 as well, which chooses experts by a sigmoid.
"""
_INTEGERS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_MOE = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_SHARED = {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}
_DEEPSEEK = {
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
}
_SIGMOID = 2
"""Of llama.cpp's gating functions."""
_YARN_STEP = 0.1
"""llama.cpp keeps the scale of YaRN's logarithm as a product with this factor of its formula."""
_MIXTRAL = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}


class _Metadata:
    """Fields of one architecture, each of the type that it must have."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, where: str) -> None:
        self.metadata, self.architecture, self.where = metadata, architecture, where

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list) and len(set(map(repr, value))) == 1:  # one number for each layer
            value = value[0]
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self._refuse(name, value)
        return value

    def count(self, name: str, default: int) -> int:
        """Read a number that may be 0."""
        return 0 if self.metadata.get(f"{self.architecture}.{name}") == 0 else self.integer(name, default)

    def number(self, name: str, default: float | None = None) -> float:
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e12:
            raise self._refuse(name, value)
        return float(value)

    def _refuse(self, name: str, value: Any) -> ConfigError:
        return ConfigError(
            f"{self.architecture}.{name} is {str(value)[:100]}, and has to be one positive number",
            where=self.where,
            todo="convert the model anew, or take its safetensors release",
        )


def make_fields(
    metadata: Mapping[str, Any], *, vocab_size: int, is_tied: bool, rope_factors: tuple[float, ...] | None, where: str
) -> dict[str, Any]:
    """Write metadata as a `config.json` of transformers would have it.

    Raises:
        ConfigError: the architecture is not known here, or a field is missing or absurd.
        FormatError: the file is one part of several.
    """
    architecture = _read_architecture(metadata, where)
    read = _Metadata(metadata, architecture, where)
    fields: dict[str, Any] = {theirs: read.integer(ours) for ours, theirs in _INTEGERS.items()}
    heads = fields["num_attention_heads"]
    fields |= {
        "model_type": ARCHITECTURES[architecture],
        "num_key_value_heads": read.integer("attention.head_count_kv", heads),
        "head_dim": read.integer("attention.key_length", fields["hidden_size"] // heads),
        "rms_norm_eps": _shorten(read.number("attention.layer_norm_rms_epsilon")),
        "vocab_size": vocab_size,
        "tie_word_embeddings": is_tied,
        "hidden_act": "silu",
    }
    if architecture in ("qwen2moe", "qwen3moe"):
        # no file says so: llama.cpp makes the weights of Qwen3's chosen experts sum to one, and not those of Qwen2's
        fields |= {"norm_topk_prob": architecture == "qwen3moe", "decoder_sparse_step": 1, "mlp_only_layers": []}
        fields |= {theirs: read.integer(ours) for ours, theirs in _MOE.items()}
    if architecture == "qwen2moe":
        fields |= {theirs: read.integer(ours) for ours, theirs in _SHARED.items()}
    if architecture == "deepseek2":
        fields |= _make_deepseek(read, heads)
    if _is_mixtral(metadata):
        fields |= {theirs: read.integer(ours) for ours, theirs in _MIXTRAL.items()} | {"model_type": "mixtral"}
    return fields | {"rope_parameters": _make_rope(read, fields, rope_factors)}


def _make_deepseek(read: _Metadata, heads: int) -> dict[str, Any]:
    """Read latent attention and its experts; a file whose keys are absorbed says the widths of heads under other names."""
    fields: dict[str, Any] = {theirs: read.integer(ours) for ours, theirs in _DEEPSEEK.items()}
    absorbed = "_mla" if "deepseek2.attention.key_length_mla" in read.metadata else ""
    key, value = (read.integer(f"attention.{name}_length{absorbed}") for name in ("key", "value"))
    if key <= fields["qk_rope_head_dim"]:
        what = f"keys of {key} are no wider than their rotary part of {fields['qk_rope_head_dim']}"
        raise ConfigError(what, where=read.where, todo="convert the model anew, or take its safetensors release")
    ranked = read.metadata.get("deepseek2.attention.q_lora_rank") is not None
    groups = read.integer("expert_group_count", 1)
    fields |= {
        "q_lora_rank": read.integer("attention.q_lora_rank") if ranked else None,
        "qk_nope_head_dim": key - fields["qk_rope_head_dim"],
        "v_head_dim": value,
        "head_dim": fields["qk_rope_head_dim"],  # the part of a head that is rotated, as transformers has it
        "num_key_value_heads": heads,
        "first_k_dense_replace": read.count("leading_dense_block_count", 0),
        "routed_scaling_factor": _shorten(read.number("expert_weights_scale", 1.0)),
        "norm_topk_prob": read.metadata.get("deepseek2.expert_weights_norm") is True,
        "n_group": groups,
        "topk_group": read.integer("expert_group_used_count", groups),
    }
    if read.metadata.get("deepseek2.expert_gating_func") == _SIGMOID:
        return fields | {"model_type": "deepseek_v3"}
    return fields | {"topk_method": "group_limited_greedy" if groups > 1 else "greedy"}


def _read_architecture(metadata: Mapping[str, Any], where: str) -> str:
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        todo = "join them first: llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
        raise FormatError(f"this is one of {parts} parts of a model", where=where, todo=todo)
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        todo = f"take the model's safetensors release; of GGUF files {', '.join(sorted(ARCHITECTURES))} are read"
        raise ConfigError(f"the architecture {architecture!r} is not read from GGUF", where=where, todo=todo)
    return str(architecture)


def _is_mixtral(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("general.architecture") == "llama" and bool(metadata.get("llama.expert_count", 0))


def _make_rope(read: _Metadata, fields: dict[str, Any], factors: tuple[float, ...] | None) -> dict[str, Any]:
    """Say how rotary waves are stretched: by factors that the file holds as a tensor, or by a rule it names.

    llama.cpp divides each frequency by its factor, which is what transformers' `longrope` does as well.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": read.number("rope.freq_base", 10000.0)}
    kind = read.metadata.get(f"{read.architecture}.rope.scaling.type", "none")
    if factors is not None and len(factors) * 2 != fields["head_dim"]:
        what = f"{len(factors)} rotary factors do not fit heads of {fields['head_dim']}"
        raise ConfigError(what, where=read.where, todo="fetch the file again")
    if factors is not None:
        longest = fields["max_position_embeddings"]
        listed = {"short_factor": list(factors), "long_factor": list(factors), "attention_factor": 1.0, "factor": 1.0}
        return rope | listed | {"rope_type": "longrope", "original_max_position_embeddings": longest}
    if kind == "none":
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": read.number("rope.scaling.factor")}
    if kind == "yarn":
        original = read.integer("rope.scaling.original_context_length", fields["max_position_embeddings"])
        factor = read.number("rope.scaling.factor")
        scales = dict.fromkeys(("mscale", "mscale_all_dim"), _read_scale(read)) if "kv_lora_rank" in fields else {}
        return rope | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **scales}
    raise ConfigError(f"rotary scaling {str(kind)[:100]!r} is not known", where=read.where)


def _read_scale(read: _Metadata) -> float:
    """Read by how much YaRN stretches the scores of DeepSeek's attention."""
    return _shorten(read.number("rope.scaling.yarn_log_multiplier", _YARN_STEP) / _YARN_STEP)


def _shorten(value: float) -> float:
    """Take the shortest number that the stored float32 can mean: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")
