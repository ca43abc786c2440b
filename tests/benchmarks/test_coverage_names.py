"""The benchmark's own reading of names: it sees what contradicts a config, and says by which rule."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIG = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "vocab_size": 129280,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("coverage_names")


@pytest.mark.parametrize(
    ("name", "cut", "page_sizes", "fault"),
    [
        ("mla_paged_decode_h16_ckv512_kpe64_ps64", (8, 1), (64,), ""),
        ("mla_paged_decode_h32_ckv512_kpe64_ps64", (8, 1), (64,), "h should be 16"),
        ("mla_paged_decode_h16_ckv512_kpe64_ps64", (8, 1), (1,), "ps: the row says page size (1,)"),
        ("gemm_fp8_block_scale_n2112_k7168", (8, 1), (), ""),
        ("gemm_fp8_block_scale_n2113_k7168", (8, 1), (), "no linear layer of this size with TP 8"),
        ("gemm_n16160_k7168", (8, 1), (), ""),
        ("moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048", (8, 8), (), ""),
        ("moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048", (8, 1), (), "e should be 256"),
        ("rmsnorm_h1536", (8, 1), (), ""),
        ("embedding_v129280_d7168", (8, 1), (), "v should be 16160"),
        ("something_h7168", (1, 1), (), "no rule knows this name"),
        ("gdn_decode_qk16_v32_d128_k_last", (1, 1), (), "the config lacks what such a kernel needs"),
    ],
)
def test_a_name_has_to_follow_from_the_config(
    names: ModuleType, tmp_path: Path, name: str, cut: tuple[int, int], page_sizes: tuple[int, ...], fault: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    said = names.check_name(names.Config(path), name, *cut, page_sizes)
    assert said.startswith(fault)
    assert bool(said) == bool(fault)


def test_it_shares_no_code_with_what_it_checks() -> None:
    assert "fib_tools" not in (BENCHMARKS / "coverage_names.py").read_text(encoding="utf-8")
