"""Models of many architectures, a few thousand weights each, to be run for real on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["ARCHITECTURES", "OTHERS", "make_model", "make_prompt"]

_COMMON: Mapping[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": None,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "vocab_size": 256,
}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen3_moe": _EXPERTS,
    "gemma3_text": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "n_shared_experts": 1,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "glm4": {},
}
"""By transformers' model type: what differs from the common sizes."""
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "bloom": {},
    "falcon": {},
    "gpt2": {},
    "mamba": {"state_size": 16},
    "mamba2": {"num_heads": 8, "state_size": 16, "expand": 2, "n_groups": 1},
    "qwen3_next": {
        **_EXPERTS,
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
}
"""Of which a part is no call of a kernel type: biased attention, state spaces, linear attention."""


def make_model(kind: str, **more: Any) -> torch.nn.Module:
    """Make a model with random weights in bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {**_COMMON, **ARCHITECTURES.get(kind, {}), **OTHERS.get(kind, {})}
    if kind == "falcon":
        del sizes["head_dim"]  # it has no such setting, and refuses one
    config = AutoConfig.for_model(kind, **{**sizes, **more})
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    return model


def make_prompt(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Make sequences of some lengths, the shorter ones padded on the left."""
    import torch

    longest = max(lengths)
    ids = torch.randint(3, 250, (len(lengths), longest), generator=torch.Generator().manual_seed(0))
    places = torch.arange(longest)
    mask = torch.stack([(places >= longest - length).long() for length in lengths])
    return {"input_ids": ids, "attention_mask": mask}
