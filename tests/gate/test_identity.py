from __future__ import annotations

from typing import Any

import pytest

from fib_tools.gate.constants import find_constants
from fib_tools.gate.identity import build_index, compare, signature
from fib_tools.gate.recognise import recognise
from fib_tools.model.definition import Definition
from fib_tools.op_types.registry import get_kernel_type

_KERNELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rmsnorm", {"hidden_size": 7168}),
    ("rmsnorm", {"hidden_size": 7168, "eps": 1e-5}),
    ("fused_add_rmsnorm", {"hidden_size": 7168}),
    ("gemma_rmsnorm", {"hidden_size": 2560}),
    ("gemm", {"n": 4096, "k": 7168}),
    ("gemm", {"n": 4096, "k": 7168, "bias": True}),
    ("gemm_fp8_block", {"n": 4096, "k": 7168}),
    ("gqa_paged_decode", {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": 1}),
    ("gqa_paged_decode", {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": 64}),
    (
        "gqa_paged_decode",
        {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": 64, "window_left": 127, "sinks": True},
    ),
    ("gqa_paged_prefill", {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": 64}),
    ("gqa_paged_prefill", {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": 64, "causal": False}),
    ("gqa_ragged_prefill", {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128}),
    ("mla_paged_decode", {"num_qo_heads": 16, "page_size": 64, "sm_scale": 192**-0.5}),
    ("mla_ragged_prefill", {"num_qo_heads": 16}),
    ("merge_state", {"num_heads": 16, "head_dim": 128}),
    ("top_k_sampling_from_probs", {"vocab_size": 163840}),
    ("top_p_sampling_from_probs", {"vocab_size": 163840}),
    ("top_k_top_p_sampling_from_probs", {"vocab_size": 163840}),
    ("top_k_top_p_sampling_from_probs", {"vocab_size": 163840, "filter_apply_order": "joint"}),
    ("silu_and_mul", {"intermediate_size": 2048}),
    ("bmm", {"b": 16, "n": 128, "k": 512}),
    ("gqa_ragged_prefill", {"num_qo_heads": 8, "num_kv_heads": 1, "head_dim": 192, "head_dim_vo": 128}),
    ("moe_routing", {"num_experts": 256, "top_k": 8, "routing": "sigmoid_bias"}),
    ("moe_routing", {"num_experts": 256, "top_k": 8, "routing": "sigmoid"}),
)


def _build(kernel: str, parameters: dict[str, Any]) -> Definition:
    return get_kernel_type(kernel).build(parameters)


def test_no_two_kernels_share_a_signature() -> None:
    signatures = [str(signature(_build(*kernel))) for kernel in _KERNELS]
    assert len(set(signatures)) == len(_KERNELS)


@pytest.mark.parametrize(("kernel", "parameters"), _KERNELS)
def test_our_own_definition_is_recognised_with_its_parameters(kernel: str, parameters: dict[str, Any]) -> None:
    definition = _build(kernel, parameters)
    found = recognise(definition)
    assert found is not None
    assert found.kernel == kernel
    assert found.parameters == get_kernel_type(kernel).parameters.model_validate(parameters).model_dump()
    assert found.build() == definition


def test_the_name_and_the_dtype_are_not_part_of_a_kernels_identity() -> None:
    plain = _build("rmsnorm", {"hidden_size": 7168})
    renamed = plain.model_copy(update={"name": "rmsnorm_h7168_of_kimi"})
    other = _build("rmsnorm", {"hidden_size": 7168, "dtype": "float16"})
    assert signature(plain) == signature(renamed) == signature(other)
    assert compare(plain, renamed).same_interface
    verdict = compare(plain, other)
    assert (verdict.same_kernel, verdict.same_interface) == (True, False)
    assert verdict.differences[0] == "hidden_states has the dtypes bfloat16 and float16"


def test_a_constant_that_changes_the_mathematics_is_part_of_it() -> None:
    verdict = compare(_build(*_KERNELS[0]), _build(*_KERNELS[1]))
    assert not verdict.same_kernel
    assert verdict.differences == ("eps 1e-06 and 1e-05",)


def _foreign(**changes: Any) -> Definition:
    document: dict[str, Any] = {
        "name": "wave_n8",
        "op_type": "toy",
        "tags": ["fi_api:flashinfer.toy.wave"],
        "axes": {"M": {"type": "var"}, "N": {"type": "const", "value": 8}, "N_div_4": {"type": "const", "value": 2}},
        "inputs": {"x": {"shape": ["M", "N"], "dtype": "float32"}},
        "outputs": {"y": {"shape": ["M", "N"], "dtype": "float32"}},
        "reference": "SCALE = -2.0\n\ndef run(x):\n    return x * SCALE\n",
    }
    return Definition.model_validate({**document, **changes})


def test_a_foreign_kernel_is_its_api_its_free_axes_and_its_constants() -> None:
    assert str(signature(_foreign())) == "toy:wave(n=8, scale=-2.0)"


def test_a_foreign_kernel_of_a_wrapper_class_goes_by_its_name() -> None:
    definition = _foreign(name="wave_causal_n8", tags=["fi_api:flashinfer.toy.Wrapper.run"])
    assert str(signature(definition)) == "toy:wave_causal(causal=True, n=8, scale=-2.0)"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": {"z": {"shape": ["M", "N"], "dtype": "float32"}}}, "inputs x and z"),
        ({"inputs": {"x": {"shape": ["N", "M"], "dtype": "float32"}}}, "x has the shapes"),
    ],
)
def test_one_kernel_can_be_called_in_two_ways(change: dict[str, Any], words: str) -> None:
    verdict = compare(_foreign(), _foreign(**change))
    assert verdict.same_kernel
    assert not verdict.same_interface
    assert words in verdict.differences[0]


def test_two_kernels_say_in_what_they_differ() -> None:
    verdict = compare(_foreign(), _build("rmsnorm", {"hidden_size": 8}))
    assert verdict.differences[0] == "kernel toy:wave and rmsnorm"


def test_a_duplicate_is_found_whatever_its_name() -> None:
    index = build_index([_foreign(), _foreign(name="second_n8")])
    assert list(index.values()) == ["wave_n8"]
    assert index[signature(_foreign(name="ripple_n8"))] == "wave_n8"
    assert signature(_foreign(reference="SCALE = 3\n\ndef run(x):\n    return x * SCALE\n")) not in index


def test_a_kernel_with_another_activation_is_not_ours() -> None:
    document = {
        "name": "moe_fp8_block_scale_ds_routing_swiglu_step_topk8_h7168",
        "op_type": "moe",
        "tags": ["fi_api:flashinfer.fused_moe.core.trtllm_fp8_block_scale_moe"],
        "axes": {"activation_type": {"type": "const", "value": 7}},
    }
    assert recognise(document) is None


def test_a_longer_name_is_another_kernel() -> None:
    ours = _build("rmsnorm", {"hidden_size": 7168})
    for name in ("rmsnorm_quant_h7168", "rmsnorm_h71680", "rmsnorm_fp4quant_h7168"):
        assert recognise(ours.model_copy(update={"name": name})) is None
    fp8 = _build("gemm", {"n": 1536, "k": 256}).model_copy(
        update={"name": "gemm_fp8_N1536_K256", "tags": ["fi_api:flashinfer.gemm.gemm_base.mm_fp8"]}
    )
    assert recognise(fp8) is None


@pytest.mark.parametrize(("blocks", "kernel"), [(448, "moe_nvfp4"), (224, "moe_mxfp4"), (100, None)])
def test_one_api_of_two_kernel_types_is_told_apart_by_its_axes(blocks: int, kernel: str | None) -> None:
    sizes = {"num_experts": 256, "num_local_experts": 32, "top_k": 8, "hidden_size": 7168, "intermediate_size": 2048}
    axes = {**sizes, "num_fp4_hidden_blocks": blocks}
    found = recognise(
        {
            "name": "moe_fp4_block_scale_renormalize_routing_topk8_e32_h7168_i2048",
            "op_type": "moe",
            "tags": ["fi_api:flashinfer.fused_moe.core.trtllm_fp4_block_scale_moe"],
            "axes": {name: {"type": "const", "value": value} for name, value in axes.items()},
        }
    )
    assert (found.kernel if found else None) == kernel


def test_constants_are_literals_with_a_name_in_capitals() -> None:
    source = (
        "EPS = 1e-5\nlow = 3\nN = -2\nT = (1, 2)\nF = f(1)\nM = -'x'\n\ndef run(x):\n    INNER = 'a'\n    EPS = 2\n"
    )
    assert find_constants(source) == {"EPS": 1e-5, "N": -2, "INNER": "a"}
    assert find_constants("def (") == {}


def test_a_definition_of_others_with_any_name_has_a_signature() -> None:
    odd = (
        get_kernel_type("rmsnorm").build({"hidden_size": 64}).model_copy(update={"name": "a name/..", "op_type": "odd"})
    )
    assert build_index([odd]) == {signature(odd): "a name/.."}
