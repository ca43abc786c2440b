"""Checkpoints small enough to be made within a test: random weights, the same in every format.

>>> model = make_llama()
>>> write_safetensors(model, folder), write_meta(model, folder, ranks=2), write_gguf(model, file, "Q8_0")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ggml_blocks

VOCABULARY = 96
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
WIDE = {"hidden_size": 256, "intermediate_size": 768}
"""Rows of 256 values, as the K types of GGML want them."""
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN3_MOE: dict[str, Any] = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
QWEN2_MOE: dict[str, Any] = {
    **{name: value for name, value in QWEN3_MOE.items() if name != "head_dim"},
    "model_type": "qwen2_moe",
    "norm_topk_prob": False,
    "shared_expert_intermediate_size": 64,
}
MIXTRAL: dict[str, Any] = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK: dict[str, Any] = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}

DEEPSEEK_V2: dict[str, Any] = {
    **DEEPSEEK,
    "model_type": "deepseek_v2",
    "q_lora_rank": None,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "norm_topk_prob": False,
}


def make_model(fields: dict[str, Any]) -> Any:
    """Make a model with random weights, large enough for every one of them to be seen in the logits."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            around = 1.0 if name.endswith("norm.weight") else 0.0
            noise = torch.randn(value.shape, generator=generator) * 1.2 / config.hidden_size**0.5
            value.copy_(_round(noise + around))
    return model.eval()


def _round(values: Any) -> Any:
    """Round to numbers that float16 and bfloat16 both have, so that only quantisation can change them."""
    import torch

    return (values * 512).round().div(512).to(torch.bfloat16)


def make_llama(**changes: Any) -> Any:
    return make_model({**LLAMA, **changes})


def logits(model: Any) -> Any:
    """What a model answers to one prompt, [tokens, vocabulary] in float32."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits[0].float()


def write_safetensors(model: Any, folder: Path, *, shard: str = "50GB") -> Path:
    """Write the layout of the Hugging Face Hub, with experts one by one as models are released."""
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def change_safetensors(folder: Path, change: Any) -> None:
    """Let `change` edit the tensors of a folder with one file."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def to_neighbours(weight: Any, heads: int) -> Any:
    """Reorder rows of a projection as Meta and llama.cpp keep them: pair i of a head is rows 2i and 2i + 1."""
    dim = weight.shape[0] // heads
    order = [
        head * dim + half * dim // 2 + pair for head in range(heads) for pair in range(dim // 2) for half in (0, 1)
    ]
    return weight[order]


_META = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
    "model.embed_tokens": ("tok_embeddings", 0),
    "model.norm": ("norm", None),
    "lm_head": ("output", 0),
}


def write_meta(model: Any, folder: Path, *, ranks: int = 1, embedding_dim: int = 0) -> Path:
    """Write Meta's layout: a shard for each model-parallel rank, and params.json.

    Llama 1 and 2 cut the embedding in dimension 1 and do not say the size of the vocabulary.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Any]] = [{} for _ in range(ranks)]
    for name, value in _list_weights(model):
        meta, dim = _name_meta(name)
        dim = embedding_dim if meta.startswith("tok_embeddings") else dim
        parts = [value] * ranks if dim is None else value.chunk(ranks, dim=dim)
        for shard, part in zip(shards, parts, strict=True):
            shard[meta] = part.clone()
    for rank, shard in enumerate(shards):
        shard["rope.freqs"] = torch.zeros(8)
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    (folder / "params.json").write_text(json.dumps(_make_params(model.config, embedding_dim)), encoding="utf-8")
    return folder


def _list_weights(model: Any) -> list[tuple[str, Any]]:
    """List the weights once each, queries and keys in neighbouring pairs."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    return [
        (name, to_neighbours(value.data, heads[leaf]) if (leaf := name.split(".")[-2]) in heads else value.data)
        for name, value in model.named_parameters()
    ]


def _name_meta(name: str) -> tuple[str, int | None]:
    base = name.removesuffix(".weight")
    if base in _META:
        return f"{_META[base][0]}.weight", _META[base][1]
    _, _, layer, leaf = base.split(".", 3)
    return f"layers.{layer}.{_META[leaf][0]}.weight", _META[leaf][1]


def _make_params(config: Any, embedding_dim: int) -> dict[str, Any]:
    rope = config.rope_parameters
    return {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "multiple_of": 64 if config.hidden_size == 64 else 256,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "vocab_size": -1 if embedding_dim else config.vocab_size,
        "use_scaled_rope": rope["rope_type"] == "llama3",
    }


def write_gguf(model: Any, path: Path, kind: str = "F32", *, is_flat: bool = False, is_absorbed: bool = False) -> Path:
    """Write one GGUF file; matrices in the type, norms in F32, as llama.cpp's own conversion does.

    With `is_flat`, matrices of one row are written as vectors; with `is_absorbed`, keys and values of latent attention apart.
    """
    import gguf

    config = model.config
    known = {
        "llama": "llama",
        "mixtral": "llama",
        "qwen2_moe": "qwen2moe",
        "deepseek_v2": "deepseek2",
        "deepseek_v3": "deepseek2",
        "qwen3": "qwen3",
        "qwen3_moe": "qwen3moe",
    }
    architecture = known[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    _write_metadata(writer, config)
    if architecture == "deepseek2":
        _write_deepseek(writer, config, is_absorbed=is_absorbed)
    code = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(code, config.num_hidden_layers)
    weights = _list_weights(model) if architecture == "llama" else list(model.named_parameters())
    weights += [(name, value) for name, value in model.named_buffers() if "correction" in name]
    for name, value in _split_experts(_split_keys(weights, config) if is_absorbed else weights):
        stored = kind if value.dim() > 1 and "mlp.gate.weight" not in name else "F32"
        values = value.detach().numpy()
        data = ggml_blocks.quantize(values[0] if values.shape[0] == 1 and is_flat else values, stored)
        writer.add_tensor(
            table.get_name(name.replace("correction_bias", "correction.bias"), try_suffixes=(".weight", ".bias")),
            data,
            raw_dtype=gguf.GGMLQuantizationType[stored],
        )
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _make_rope_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_metadata(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if "kv_lora_rank" not in vars(config):
        writer.add_key_length(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    writer.add_token_list([f"token {index}" for index in range(config.vocab_size)])
    if config.model_type == "mixtral":
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if config.model_type in ("qwen2_moe", "qwen3_moe"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _write_deepseek(writer: Any, config: Any, *, is_absorbed: bool) -> None:
    import gguf

    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    width = config.qk_nope_head_dim + config.qk_rope_head_dim
    if is_absorbed:
        writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
        writer.add_value_length(config.kv_lora_rank)
        writer.add_key_length_mla(width)
        writer.add_value_length_mla(config.v_head_dim)
    else:
        writer.add_key_length(width)
        writer.add_value_length(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)
    kinds = gguf.ExpertGatingFuncType
    writer.add_expert_gating_func(kinds.SIGMOID if config.model_type == "deepseek_v3" else kinds.SOFTMAX)
    rope = config.rope_parameters
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])


def _split_keys(weights: list[tuple[str, Any]], config: Any) -> list[tuple[str, Any]]:
    """Part what expands latents: keys, turned around, from values, for each head."""
    parted: list[tuple[str, Any]] = []
    for name, value in weights:
        if not name.endswith("kv_b_proj.weight"):
            parted.append((name, value))
            continue
        heads = value.detach().reshape(config.num_attention_heads, -1, config.kv_lora_rank)
        keys, own = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        base = name.removesuffix("kv_b_proj.weight")
        parted += [(f"{base}k_b_proj.weight", keys.transpose(1, 2).contiguous()), (f"{base}v_b_proj.weight", own)]
    return parted


def _split_experts(weights: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Part what transformers keeps as one parameter: gates above ups, for all experts, [E, 2 * I, H]."""
    parted: list[tuple[str, Any]] = []
    for name, value in weights:
        if name.endswith("experts.gate_up_proj"):
            gate, up = value.data.chunk(2, dim=1)
            base = name.removesuffix("gate_up_proj")
            parted += [(f"{base}gate_proj.weight", gate.contiguous()), (f"{base}up_proj.weight", up.contiguous())]
        else:
            parted.append((name if name.endswith((".weight", "bias")) else f"{name}.weight", value))
    return parted


def _make_rope_factors(config: Any) -> Any:
    """By how much Llama 3's rule divides each frequency, as llama.cpp's conversion writes it down."""
    import numpy as np
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    return (config.rope_parameters["rope_theta"] ** -exponents / stretched.double().numpy()).astype(np.float32)
