"""Copy Definitions of a dataset with one error planted in each reference: their tests on a GPU must all fail.

python benchmarks/plant_errors.py DATASET COPY && python benchmarks/reference_tests.py COPY --out FOLDER

Each error is one that a person or a model makes: a forgotten factor, a wrong base, an index off by one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

ERRORS = (
    ("rmsnorm_h7168", "EPS = 1e-06", "EPS = 1e-05"),
    ("fused_add_rmsnorm_h7168", "output, x.to(residual.dtype)", "output, residual.clone()"),
    ("gqa_paged_decode_h24_kv8_d128_ps64", "int(kv_last_page_len[b])", "k_cache.shape[1]"),
    ("gqa_paged_decode_h24_kv8_d128_ps1", "/ math.log(2)", "* 1.0"),
    (
        "gqa_paged_decode_h32_kv4_d128_ps64",
        "reshape(rows, kv_heads, heads // kv_heads, dim)",
        "reshape(rows, heads // kv_heads, kv_heads, dim).transpose(1, 2)",
    ),
    ("mla_paged_decode_h16_ckv512_kpe64_ps64", "values = ckv[:, None, :]", "values = ckv[:, None, :] * 1.01"),
    ("mla_paged_decode_h16_ckv512_kpe64_ps1", "torch.cat([ckv, kpe], dim=-1)", "torch.cat([ckv, 0 * kpe], dim=-1)"),
    ("mla_paged_prefill_causal_h16_ckv512_kpe64_ps64", "visible = key <= row", "visible = key < row.clamp(min=1)"),
    ("mla_paged_prefill_causal_h8_ckv512_kpe64_ps64", "- last + length", "- first"),
    ("rope_with_cos_sin_cache_neox_style_d128_rd128", "first * cos - second * sin", "first * cos + second * sin"),
    ("merge_state_h16_d128", "torch.exp2(s_b - top)", "torch.exp(s_b - top)"),
    ("moe_bf16_renorm_topk8_e128_h2048_i768", "up, gate = inner", "gate, up = inner"),
    (
        "moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048",
        "select(group_scores, TOPK_GROUP)",
        "select(group_scores, TOPK_GROUP + 1)",
    ),
    (
        "moe_fp8_block_scale_ds_routing_topk8_ng1_kg1_e96_h7168_i1024",
        "weights = scores.gather(1, experts)",
        "weights = (scores + bias).gather(1, experts)",
    ),
    ("moe_routing_ds_topk8_ng8_kg4_e256", "[..., :2].sum", "[..., :1].sum"),
    (
        "moe_routing_renormalize_topk8_e128",
        "torch.softmax(logits.gather(1, experts), dim=-1)",
        "torch.softmax(logits, dim=-1).gather(1, experts)",
    ),
    ("gemm_n256_k7168", ".to(torch.float32)", ".to(torch.float8_e4m3fn).to(torch.float32)"),
    ("gemm_fp8_block_scale_n1536_k1536", "zip(B.split(BLOCK_N), B_scale)", "zip(B.split(BLOCK_N), B_scale.flip(0))"),
    ("fp8_quantize_1x128_k512", "/ 448.0", "/ 440.0"),
    ("silu_and_mul_i8192", "gate, up = x", "up, gate = x"),
    ("append_paged_kv_cache_kv8_d128_ps64", "slots = position % page_size", "slots = (position + 1) % page_size"),
    ("embedding_v128256_d3072", "weight[", "weight.roll(1, 0)["),
    ("top_p_renorm_probs_v128256", "before < top_p[:, None]", "ordered.cumsum(-1) < top_p[:, None]"),
    ("top_k_renorm_probs_v128256", "gather(-1, k[:, None] - 1)", "gather(-1, k[:, None].clamp(max=vocab_size - 1))"),
    ("softmax_sampling_v128256", "/ temperature[:, None]", "* temperature[:, None]"),
    ("top_k_sampling_from_probs_v128256", "torch.where(probs >= threshold, probs, 0.0)", "probs.clone()"),
    ("top_p_sampling_from_probs_v128256", "before < top_p", "before < 0.5 * top_p"),
    ("min_p_sampling_from_probs_v128256", "min_p[:, None] *", "0.5 * min_p[:, None] *"),
    ("chain_speculative_sampling_v129280", "(target - draft).clamp(min=0.0)", "target.clone()"),
)
"""The Definition, and what of its reference becomes what."""


def plant(source: Path, target: Path) -> int:
    """Copy the Definitions that have an error, with it, and their tests as they are."""
    tests = target / "tests" / "references"
    tests.mkdir(parents=True)
    shutil.copy(source / "tests" / "references" / "conftest.py", tests)
    for name, old, new in ERRORS:
        path = next((source / "definitions").glob(f"*/{name}.json"))
        document = json.loads(path.read_text(encoding="utf-8"))
        if old not in document["reference"]:
            raise SystemExit(f"{name}: its reference does not hold {old!r}")
        document["reference"] = document["reference"].replace(old, new)
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(json.dumps(document), encoding="utf-8")
        shutil.copy(source / "tests" / "references" / f"test_{name}.py", tests)
    return len(ERRORS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("copy", type=Path)
    arguments = parser.parse_args()
    sys.stdout.write(f"{plant(arguments.dataset, arguments.copy)} errors planted\n")


if __name__ == "__main__":
    main()
