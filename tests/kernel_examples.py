"""One set of parameters for each kernel type, small enough that all of them can be made and looked at in one test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["KERNEL_EXAMPLES"]

_HEADS = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64}
_LATENT = {"num_qo_heads": 4, "head_dim_ckv": 512, "head_dim_kpe": 64, "sm_scale": 0.1}
_EXPERTS = {
    "num_experts": 16,
    "top_k": 4,
    "num_local_experts": 8,
    "hidden_size": 256,
    "intermediate_size": 128,
    "routing": "renormalize",
}
_GDN = {"num_q_heads": 2, "num_v_heads": 4, "head_size": 32}
_MAMBA = {"num_heads": 4, "head_dim": 16, "d_state": 32, "num_groups": 2}
_WINDOWED = {"num_qo_heads": 4, "head_dim": 64, "window": 8, "page_size": 16}
_SAMPLERS = (
    "top_k_sampling_from_probs",
    "top_p_sampling_from_probs",
    "top_k_top_p_sampling_from_probs",
    "min_p_sampling_from_probs",
    "top_k_renorm_probs",
    "top_p_renorm_probs",
    "softmax_sampling",
    "chain_speculative_sampling",
)


def _each(kernels: tuple[str, ...], parameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return dict.fromkeys(kernels, parameters)


KERNEL_EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    **_each(("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "relu2", "swiglu_oai"), {"intermediate_size": 32}),
    **_each(("silu", "gelu", "gelu_tanh"), {"intermediate_size": 32}),
    "rope": {"num_heads": 4, "head_dim": 64, "rotary_dim": 64},
    "softmax": {"dim": 32},
    "topk": {"dim": 32, "k": 4},
    "merge_state": {"num_heads": 4, "head_dim": 64},
    "causal_conv1d_decode": {"channels": 64, "width": 4},
    "causal_conv1d_prefill": {"channels": 64, "width": 4, "bias": True},
    "dsa_sparse_attention": {"num_qo_heads": 4, "topk": 32, "page_size": 16, "sm_scale": 0.1},
    "dsa_topk_indexer": {"num_index_heads": 4, "index_head_dim": 32, "topk": 64, "page_size": 16},
    "dsv4_window_attention": _WINDOWED,
    "dsv4_compressed_attention": {**_WINDOWED, "topk": 5, "compressed_page_size": 4},
    "embedding": {"vocab_size": 100, "hidden_size": 16},
    "gdn_decode": _GDN,
    "gdn_prefill": _GDN,
    "gdn_mtp": _GDN,
    "gemm": {"n": 48, "k": 64},
    "bmm": {"b": 2, "n": 48, "k": 64},
    "gemm_nvfp4": {"n": 48, "k": 64},
    "gemm_fp8_block": {"n": 256, "k": 384},
    "gemm_fp8_tensor": {"n": 48, "k": 64},
    "gemm_fp8_channel": {"n": 48, "k": 64},
    "gemm_w4a16": {"n": 48, "k": 256},
    "gqa_paged_decode": {**_HEADS, "page_size": 16},
    "gqa_paged_prefill": {**_HEADS, "page_size": 1},
    "gqa_ragged_prefill": _HEADS,
    "kda_decode": {"num_heads": 4, "head_dim": 32},
    "kda_prefill": {"num_heads": 4, "head_dim": 32},
    "kv_compress": {"head_dim": 32, "compress_rate": 4, "overlap": True},
    "layernorm": {"hidden_size": 64},
    "mamba_ssu_decode": _MAMBA,
    "mamba_chunk_scan": _MAMBA,
    "mhc_prenorm_gemm": {"n": 24, "k": 256},
    "mhc_pre_big_fuse": {"hidden_size": 64},
    "mhc_post": {"hidden_size": 64},
    "mhc_head": {"hidden_size": 64},
    "mla_paged_decode": {**_LATENT, "page_size": 1},
    "mla_paged_prefill": {**_LATENT, "page_size": 16},
    "mla_ragged_prefill": {"num_qo_heads": 4},
    **_each(("moe_fp8_block_scale", "moe_fp8_tensor", "moe_nvfp4", "moe_mxfp4", "moe_bf16", "moe_w4a16"), _EXPERTS),
    "moe_routing": {"num_experts": 16, "top_k": 4, "routing": "sigmoid_bias"},
    "hash_topk": {"num_routed_experts": 16, "topk": 4, "vocab": 100},
    "append_paged_kv_cache": {"num_kv_heads": 2, "head_dim": 64, "page_size": 16},
    "append_paged_mla_kv_cache": {"page_size": 1},
    **_each(("fp8_quantize_1x128", "fp8_quantize_tensor", "nvfp4_quantize", "mxfp8_quantize"), {"hidden_size": 256}),
    **_each(
        ("rmsnorm", "gemma_rmsnorm", "fused_add_rmsnorm", "gemma_fused_add_rmsnorm", "rmsnorm_noweight"),
        {"hidden_size": 64},
    ),
    "rmsnorm_gated": {"hidden_size": 64},
    "rope_with_cos_sin_cache": {"head_dim": 64, "rotary_dim": 32},
    **_each(_SAMPLERS, {"vocab_size": 128}),
}
"""By kernel id."""
