from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fib_tools.gate.strict import find_axis_faults, find_shape_faults
from fib_tools.gate.templates import TemplateResult, instantiate
from fib_tools.op_types.base import MetaTensor, TemplateCall


def _t(*shape: int, dtype: str = "bfloat16") -> MetaTensor:
    return MetaTensor(shape=shape, dtype=dtype)


_INDEX = "int32"
_MLA = "flashinfer.mla._core.trtllm_batch_decode_with_kv_cache_mla"

_RIGHT: Mapping[str, TemplateCall] = {
    "rmsnorm": TemplateCall(fi_api="flashinfer.norm.rmsnorm", arguments={"input": _t(4, 4096), "weight": _t(4096)}),
    "paged_decode": TemplateCall(
        fi_api="flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper.run",
        arguments={
            "q": _t(4, 32, 128),
            "paged_kv_cache": (_t(9, 16, 8, 128), _t(9, 16, 8, 128)),
            "kv_indptr": _t(5, dtype=_INDEX),
            "kv_indices": _t(9, dtype=_INDEX),
        },
    ),
}

_TRAPS: Mapping[str, tuple[TemplateCall, Mapping[str, int], str]] = {
    "3-D QK-norm gives rmsnorm_h32": (
        TemplateCall(fi_api="flashinfer.norm.rmsnorm", arguments={"input": _t(4, 32, 128), "weight": _t(128)}),
        {"hidden_size": 128},
        "dimensions",
    ),
    "3-D fused_add gives the number of heads": (
        TemplateCall(
            fi_api="flashinfer.norm.fused_add_rmsnorm",
            arguments={"input": _t(4, 32, 128), "residual": _t(4, 32, 128), "weight": _t(128)},
        ),
        {},
        "dimensions",
    ),
    "HND tuple gives kv16_ps8": (
        TemplateCall(
            fi_api="flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper.run",
            arguments={"q": _t(4, 32, 128), "paged_kv_cache": (_t(9, 8, 16, 128), _t(9, 8, 16, 128))},
        ),
        {"num_kv_heads": 8, "page_size": 16},
        "the kernel's is",
    ),
    "one 5-D tensor loses kv and ps": (
        TemplateCall(
            fi_api="flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper.run",
            arguments={"q": _t(4, 32, 128), "paged_kv_cache": _t(9, 2, 16, 8, 128)},
        ),
        {},
        "no tensor where the template looks",
    ),
    "3-D pool": (
        TemplateCall(
            fi_api="flashinfer.prefill.BatchPrefillWithPagedKVCacheWrapper.run",
            arguments={"q": _t(4, 24, 128), "paged_kv_cache": (_t(99, 8, 128), _t(99, 8, 128))},
        ),
        {},
        "dimensions",
    ),
    "ragged MLA declares V 192 wide": (
        TemplateCall(
            fi_api="flashinfer.prefill.BatchPrefillWithRaggedKVCacheWrapper.run",
            arguments={"q": _t(7, 64, 192), "k": _t(9, 64, 192), "v": _t(9, 64, 128)},
        ),
        {},
        "elsewhere 192",
    ),
    "trtllm decode with a tuple": (
        TemplateCall(
            fi_api="flashinfer.decode.trtllm_batch_decode_with_kv_cache",
            arguments={
                "query": _t(4, 32, 128),
                "kv_cache": (_t(9, 8, 16, 128), _t(9, 8, 16, 128)),
                "block_tables": _t(4, 3, dtype=_INDEX),
                "seq_lens": _t(4, dtype=_INDEX),
            },
        ),
        {},
        "no tensor where the template looks",
    ),
    "trtllm MLA with a 3-D cache gives ps576": (
        TemplateCall(
            fi_api=_MLA,
            arguments={
                "query": _t(4, 1, 128, 576),
                "kv_cache": _t(9, 64, 576),
                "block_tables": _t(4, 3, dtype=_INDEX),
                "seq_lens": _t(4, dtype=_INDEX),
                "kv_lora_rank": 512,
                "qk_rope_head_dim": 64,
                "qk_nope_head_dim": 128,
            },
        ),
        {},
        "dimensions",
    ),
    "append to a 5-D cache gives ps2": (
        TemplateCall(
            fi_api="flashinfer.page.append_paged_kv_cache",
            arguments={
                "append_key": _t(7, 8, 128),
                "append_value": _t(7, 8, 128),
                "paged_kv_cache": _t(9, 2, 16, 8, 128),
                "batch_indices": _t(7, dtype=_INDEX),
                "positions": _t(7, dtype=_INDEX),
                "kv_indices": _t(9, dtype=_INDEX),
                "kv_indptr": _t(5, dtype=_INDEX),
                "kv_last_page_len": _t(4, dtype=_INDEX),
            },
        ),
        {},
        "",
    ),
    "mamba with the engine's 4-D state": (
        TemplateCall(
            fi_api="flashinfer.mamba.selective_state_update.selective_state_update",
            arguments={
                "state": _t(9, 64, 64, 128),
                "x": _t(4, 64, 64),
                "dt": _t(4, 64, 64),
                "A": _t(64, 64, 128, dtype="float32"),
                "B": _t(4, 8, 128),
                "C": _t(4, 8, 128),
                "D": _t(64, 64, dtype="float32"),
            },
        ),
        {},
        "dimensions",
    ),
    "mm_fp4 contradicts itself": (
        TemplateCall(
            fi_api="flashinfer.gemm.gemm_base.mm_fp4",
            arguments={
                "a": _t(128, 2048, dtype="uint8"),
                "b": _t(2048, 512, dtype="uint8"),
                "a_descale": _t(128, 256, dtype="uint8"),
                "b_descale": _t(256, 512, dtype="uint8"),
                "alpha": _t(dtype="float32"),
                "block_size": 16,
            },
        ),
        {"K": 4096},
        "",
    ),
    "rope of a flattened query": (
        TemplateCall(
            fi_api="flashinfer.rope.apply_rope",
            arguments={
                "q": _t(4, 4096),
                "k": _t(4, 1024),
                "indptr": _t(3, dtype=_INDEX),
                "offsets": _t(2, dtype=_INDEX),
            },
        ),
        {},
        "dimensions",
    ),
}


@pytest.fixture(scope="module")
def results() -> dict[str, TemplateResult]:
    calls = {**_RIGHT, **{name: trap[0] for name, trap in _TRAPS.items()}}
    return dict(zip(calls, instantiate(list(calls.values())), strict=True))


@pytest.mark.parametrize("name", list(_RIGHT))
def test_a_call_of_the_right_shape_passes(results: dict[str, TemplateResult], name: str) -> None:
    assert results[name].reason is None
    assert find_shape_faults(_RIGHT[name], results[name]) == ()


@pytest.mark.parametrize("name", list(_TRAPS))
def test_a_known_trap_is_refused(results: dict[str, TemplateResult], name: str) -> None:
    call, expected, words = _TRAPS[name]
    assert results[name].raw is not None
    faults = find_shape_faults(call, results[name], expected=expected)
    assert faults
    assert any(words in fault for fault in faults), faults


def test_an_api_without_a_template_says_so() -> None:
    result = TemplateResult(fi_api="flashinfer.norm.nothing", reason="FlashInfer registers no template")
    call = TemplateCall(fi_api="flashinfer.norm.nothing", arguments={})
    assert find_shape_faults(call, result) == ("no dump: FlashInfer registers no template",)


def _result(axes: dict[str, Any], inputs: dict[str, Any], bindings: dict[str, Any], **more: Any) -> TemplateResult:
    raw = {"name": "x", "op_type": "x", "axes": axes, "inputs": inputs, "outputs": {}, **more.pop("raw", {})}
    return TemplateResult(fi_api="x", raw=raw, bindings=bindings, **more)


_CALL = TemplateCall(fi_api="x", arguments={})


def test_an_axis_of_two_lengths_is_a_fault() -> None:
    tensor = {"shape": ["N"], "dtype": "float32"}
    result = _result({"N": {"type": "var"}}, {"a": tensor, "b": tensor}, {"a": (3,), "b": (4,)})
    assert find_shape_faults(_CALL, result) == ("b: N is 4, elsewhere 3",)


def test_a_const_axis_without_value_is_a_fault() -> None:
    result = _result({"K": {"type": "const"}}, {"a": {"shape": None, "dtype": "int32"}}, {})
    assert find_shape_faults(_CALL, result) == ("const axis K has no value",)


def test_a_constraint_that_the_tensors_break_is_a_fault() -> None:
    axes = {"K": {"type": "const", "value": 8}, "P": {"type": "var"}}
    result = _result(
        axes, {"a": {"shape": ["P"], "dtype": "int8"}}, {"a": (8,)}, raw={"constraints": ["P == K // 2", "odd(P)"]}
    )
    assert find_shape_faults(_CALL, result) == ("constraint 'P == K // 2' does not hold",)


def test_a_derived_axis_must_have_the_length_its_name_says() -> None:
    axes = {"K": {"type": "const", "value": 512}, "K_div_128": {"type": "var"}}
    result = _result(axes, {"s": {"shape": ["K_div_128"], "dtype": "float32"}}, {"s": (512,)})
    assert find_shape_faults(_CALL, result) == ("K_div_128 is 512, but K is 512",)


def test_a_tensor_that_no_input_reads_is_a_fault_unless_it_is_a_buffer() -> None:
    result = _result(
        {"N": {"type": "var"}}, {"a": {"shape": ["N"], "dtype": "int8"}}, {"a": (1,)}, strays=("out", "sinks")
    )
    assert find_shape_faults(_CALL, result) == ("no input reads the tensor sinks of the call",)


def test_an_absent_optional_is_no_fault() -> None:
    result = _result({"N": {"type": "var"}}, {"a": {"shape": ["N"], "dtype": "int8", "optional": True}}, {"a": None})
    assert find_shape_faults(_CALL, result) == ()


def test_a_layout_that_the_template_does_not_mean_is_a_fault() -> None:
    shape = ["P", "page_size", "num_kv_heads", "D"]
    axes = {name: {"type": "var"} for name in shape}
    result = _result(axes, {"k": {"shape": shape, "dtype": "bfloat16"}}, {"k": (9, 8, 16, 128)})
    call = TemplateCall(fi_api="x", arguments={"kv_layout": "HND"})
    assert find_shape_faults(call, result) == ("k: the call's caches are HND, the template names them NHD",)


@pytest.mark.parametrize(
    ("values", "name", "words"),
    [
        ({"num_qo_heads": 24, "num_kv_heads": 128, "head_dim": 128, "page_size": 8}, "gqa_paged_decode", "3-D pool"),
        ({"num_qo_heads": 8, "num_kv_heads": 16}, "gqa_paged_decode", "no multiple"),
        ({"page_size": 576}, "trtllm_batch_decode_mla_ps576", "power of two"),
        ({"page_size": 0}, "gqa_paged", "power of two"),
        ({"page_size": 2}, "append_paged_kv_cache_kv16_d8_ps2", "5-D"),
        ({"head_dim": 192, "num_qo_heads": 64, "num_kv_heads": 64}, "gqa_ragged_h64_kv64_d192", "128 wide"),
        ({"hidden_size": 32}, "rmsnorm_h32", "number of heads"),
        ({"num_experts": 8, "num_local_experts": 16}, "moe", "is over"),
        ({"num_experts": 8, "top_k": 9}, "moe", "top_k"),
    ],
)
def test_lengths_that_no_kernel_has_are_named(values: dict[str, int], name: str, words: str) -> None:
    op_type = "rmsnorm" if name.startswith("rmsnorm") else "x"
    raw = {
        "name": name,
        "op_type": op_type,
        "axes": {axis: {"type": "const", "value": v} for axis, v in values.items()},
    }
    (fault,) = find_axis_faults(raw)
    assert words in fault


@pytest.mark.parametrize(
    "values",
    [
        {"num_qo_heads": 64, "num_kv_heads": 8, "head_dim": 128, "page_size": 64},
        {"num_qo_heads": 8, "num_kv_heads": 1, "head_dim": 192, "head_dim_vo": 128},
    ],
)
def test_lengths_of_a_real_kernel_are_not(values: dict[str, int]) -> None:
    axes = {axis: {"type": "const", "value": value} for axis, value in values.items()}
    assert find_axis_faults({"name": "gqa_ragged_prefill", "op_type": "gqa_ragged", "axes": axes}) == ()
