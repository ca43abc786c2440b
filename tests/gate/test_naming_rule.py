from __future__ import annotations

import pytest

from fib_tools.gate.naming_rule import Naming, find_name_faults, suggest_name
from fib_tools.op_types.registry import get_kernel_type

_SIZES = {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": 16}


def _naming(name: str, op_type: str = "gqa_paged", reference: str = "", **axes: int) -> Naming:
    return Naming(name=name, op_type=op_type, const_axes=axes or _SIZES, reference=reference)


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [
        ("rmsnorm", {"hidden_size": 7168}),
        ("silu_and_mul", {"intermediate_size": 4608}),
        ("gqa_paged_decode", _SIZES),
        ("causal_conv1d_decode", {"channels": 8192, "width": 4}),
        ("gemm_fp8_block", {"n": 576, "k": 7168}),
        ("top_k_top_p_sampling_from_probs", {"vocab_size": 163840}),
        ("gemm_w4a16", {"n": 7168, "k": 2048}),
    ],
)
def test_the_names_that_the_op_types_give_obey_the_rule(kernel: str, parameters: dict[str, int]) -> None:
    built = get_kernel_type(kernel).build(parameters)
    naming = Naming(name=built.name, op_type=built.op_type, const_axes=built.const_axes, reference=built.reference)
    assert list(find_name_faults(naming)) == []
    assert suggest_name(naming) == built.name


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("gqa_paged_decode_h32_kv8_d64_ps16", "gqa_paged_decode_h32_kv8_d128_ps16"),
        ("gqa_paged_decode_h32_kv8", "gqa_paged_decode_h32_kv8_d128_ps16"),
        ("my_kernel_h32_kv8_d128_ps16", "gqa_paged_my_kernel_h32_kv8_d128_ps16"),
        ("gqa_paged_decode_h32_kv8_d128_ps16_q9", "gqa_paged_decode_h32_kv8_d128_ps16"),
        ("../gqa_paged_h32_kv8_d128_ps16", "gqa_paged_h32_kv8_d128_ps16"),
        ("gqa paged", "gqa_paged_h32_kv8_d128_ps16"),
    ],
)
def test_a_name_that_breaks_the_rule_gets_a_suggestion_that_obeys_it(name: str, suggestion: str) -> None:
    naming = _naming(name)
    assert list(find_name_faults(naming))
    assert suggest_name(naming) == suggestion
    assert list(find_name_faults(_naming(suggest_name(naming)))) == []


def test_a_number_of_the_reference_and_of_a_format_may_stand_in_a_name() -> None:
    assert list(find_name_faults(_naming("toy_fp8_topk6_h64_v2", "toy", "TOP_K = 6\n", hidden_size=64))) == []


def test_a_wrong_number_is_named_with_the_sizes_there_are() -> None:
    assert list(find_name_faults(_naming("toy_h65", "toy", hidden_size=640))) == [
        ("h65", "a number that the Definition has (hidden_size=640)"),
        ("toy_h65", "a part for the const axis hidden_size = 640, such as h640"),
    ]
