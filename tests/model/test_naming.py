from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fib_tools.errors import PathError
from fib_tools.model.naming import format_name, parse_name

PUBLISHED = [
    "rmsnorm_h7168",
    "fused_add_rmsnorm_h2048",
    "gqa_paged_decode_h32_kv8_d128_ps1",
    "gqa_ragged_prefill_causal_h32_kv4_d128",
    "mla_paged_prefill_causal_h16_ckv512_kpe64_ps1",
    "moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048",
    "gdn_decode_qk4_v8_d128_k_last",
    "gemm_n_6144_k_4096",
    "top_k_top_p_sampling_from_probs_v129280",
    "dsa_topk_indexer_fp8_h64_d128_topk2048_ps64",
]


@pytest.mark.parametrize("text", PUBLISHED)
def test_a_published_name_comes_back_from_its_parts(text: str) -> None:
    assert str(parse_name(text)) == text


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,40}", fullmatch=True))
def test_any_name_comes_back_from_its_parts(text: str) -> None:
    assert str(parse_name(text)) == text


def test_the_numbers_of_a_name_are_read_by_key() -> None:
    assert parse_name(PUBLISHED[5]).numbers == {"fp": 8, "topk": 8, "ng": 8, "kg": 4, "e": 32, "h": 7168, "i": 2048}


def test_a_name_is_put_together_from_words_and_numbers() -> None:
    assert format_name("mla_paged_decode", ("h", 16), ("ckv", 512), "") == "mla_paged_decode_h16_ckv512"


@pytest.mark.parametrize("text", ["", "../etc", "a/b", "a..b", ".hidden", "-rf", "a b", "ü", "a\0", "x" * 161, "a\n"])
def test_a_text_that_could_leave_its_folder_is_no_name(text: str) -> None:
    with pytest.raises(PathError):
        parse_name(text)
