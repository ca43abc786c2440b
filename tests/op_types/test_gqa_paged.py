from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.model.definition import Definition
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type

SMALL = {"num_qo_heads": 6, "num_kv_heads": 2, "head_dim": 8}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"window_left": 2},
    {"window_left": 0},
    {"logits_soft_cap": 1.5},
    {"sinks": True},
    {"head_dim_vo": 4, "sm_scale": 0.7},
    {"window_left": 3, "logits_soft_cap": 2.0, "sinks": True},
    {"kv_dtype": "float8_e4m3fn"},
    {"dtype": "float16"},
]
PREFILL_VARIANTS: list[dict[str, Any]] = [
    *VARIANTS,
    {"causal": False},
    {"causal": False, "window_left": 2},
    {"chunk": 4},
    {"chunk": 3, "sinks": True, "window_left": 5},
]
LLAMA = {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128}


@pytest.mark.parametrize(
    ("kernel_id", "parameters", "name"),
    [
        ("gqa_paged_decode", {"page_size": 1}, "gqa_paged_decode_h32_kv8_d128_ps1"),
        ("gqa_paged_decode", {"page_size": 64, "head_dim_vo": 128}, "gqa_paged_decode_h32_kv8_d128_ps64"),
        ("gqa_paged_decode", {"page_size": 1, "head_dim_vo": 64}, "gqa_paged_decode_h32_kv8_d128_vo64_ps1"),
        (
            "gqa_paged_decode",
            {"page_size": 16, "window_left": 127, "logits_soft_cap": 50.0, "sinks": True, "kv_dtype": "float8_e4m3fn"},
            "gqa_paged_decode_h32_kv8_d128_ps16_w127_cap50_sinks_kvfp8",
        ),
        ("gqa_paged_prefill", {"page_size": 1}, "gqa_paged_prefill_causal_h32_kv8_d128_ps1"),
        ("gqa_paged_prefill", {"page_size": 1, "causal": False}, "gqa_paged_prefill_full_h32_kv8_d128_ps1"),
        (
            "gqa_paged_prefill",
            {"page_size": 1, "chunk": 8192, "kv_dtype": "float8_e5m2"},
            "gqa_paged_prefill_causal_h32_kv8_d128_ps1_kvfp8e5m2_chunk8192",
        ),
    ],
)
def test_the_name_is_the_canonical_one(kernel_id: str, parameters: dict[str, Any], name: str) -> None:
    assert get_kernel_type(kernel_id).build({**LLAMA, **parameters}).name == name


@pytest.mark.parametrize(
    ("kernel_id", "page_size", "inputs", "axes"),
    [
        (
            "gqa_paged_decode",
            1,
            "q k_cache v_cache kv_indptr kv_indices sm_scale",
            "batch_size num_qo_heads num_kv_heads head_dim num_pages page_size len_indptr num_kv_indices",
        ),
        (
            "gqa_paged_decode",
            64,
            "q k_cache v_cache kv_indptr kv_indices kv_last_page_len sm_scale",
            "batch_size num_qo_heads num_kv_heads head_dim num_pages page_size len_indptr num_kv_indices",
        ),
        (
            "gqa_paged_prefill",
            1,
            "q k_cache v_cache qo_indptr kv_indptr kv_indices sm_scale",
            "num_qo_heads num_kv_heads head_dim num_pages page_size len_indptr num_kv_indices total_q",
        ),
        (
            "gqa_paged_prefill",
            64,
            "q k_cache v_cache qo_indptr kv_indptr kv_indices kv_last_page_len sm_scale",
            "num_qo_heads num_kv_heads head_dim batch_size num_pages page_size len_indptr num_kv_indices total_q",
        ),
    ],
)
def test_the_interface_is_that_of_the_dataset(kernel_id: str, page_size: int, inputs: str, axes: str) -> None:
    definition = get_kernel_type(kernel_id).build({**LLAMA, "page_size": page_size})
    assert list(definition.inputs) == inputs.split()
    assert list(definition.axes) == axes.split()
    assert list(definition.outputs) == ["output", "lse"]
    assert definition.outputs["lse"].dtype.value == "float32"


def test_scales_and_sinks_follow_the_softmax_scale() -> None:
    variant = {"page_size": 1, "sinks": True, "kv_dtype": "float8_e4m3fn"}
    definition = get_kernel_type("gqa_paged_decode").build({**LLAMA, **variant})
    assert list(definition.inputs)[-4:] == ["sm_scale", "k_scale", "v_scale", "sinks"]
    assert definition.inputs["sinks"].shape == ["num_qo_heads"]


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_decode_is_attention_of_the_last_token(page_size: int, variant: dict[str, Any]) -> None:
    definition = get_kernel_type("gqa_paged_decode").build({**SMALL, "page_size": page_size, **variant})
    pages = [0, 3, 0, 1] if page_size > 1 else [0, 9, 0, 1]
    inputs = _inputs(definition, pages=pages, last=[0, 5, 0, page_size])
    _check(inputs, _run(definition, inputs), variant, [1, 1, 1, 1])


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("variant", PREFILL_VARIANTS, ids=str)
def test_prefill_is_attention_of_the_new_tokens(page_size: int, variant: dict[str, Any]) -> None:
    """Sequences: more keys than queries, no query, no key, more queries than keys, as many."""
    definition = get_kernel_type("gqa_paged_prefill").build({**SMALL, "page_size": page_size, **variant})
    pages = [2, 1, 0, 1, 1] if page_size > 1 else [9, 4, 0, 2, 5]
    queries = [4, 0, 2, 5, 5]
    inputs = _inputs(definition, pages=pages, last=[min(3, page_size), 1, 0, 2, 5], queries=queries)
    _check(inputs, _run(definition, inputs), variant, queries)


def test_a_long_prefill_is_taken_in_blocks_without_a_seam() -> None:
    definition = get_kernel_type("gqa_paged_prefill").build({**SMALL, "page_size": 16, "window_left": 20})
    inputs = _inputs(definition, pages=[17], last=[9], queries=[260])
    _check(inputs, _run(definition, inputs), {"window_left": 20}, [260], rows=[0, 127, 128, 129, 255, 256, 259])


def test_the_plain_causal_case_agrees_with_torch() -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    definition = get_kernel_type("gqa_paged_prefill").build({**SMALL, "page_size": 1})
    inputs = _inputs(definition, pages=[11], last=[1], queries=[4])
    output, _ = _run(definition, inputs)
    table = inputs["kv_indices"].long()
    q, k, v = (
        value.double().transpose(0, 1)
        for value in (inputs["q"], inputs["k_cache"][table, 0], inputs["v_cache"][table, 0])
    )
    mask = torch.ones(4, 11, dtype=torch.bool).tril(diagonal=7)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=8**-0.5, enable_gqa=True).transpose(0, 1)
    torch.testing.assert_close(output.double(), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_kv_heads": 4},
        {"kv_dtype": "float16"},
        {"window_left": -2},
        {"logits_soft_cap": -1.0},
        {"sm_scale": 0.0},
        {"page_size": 0},
        {"causal": True},
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        get_kernel_type("gqa_paged_decode").build({**SMALL, "page_size": 1, **wrong})


def test_a_default_that_is_spelled_out_gives_the_same_parameters() -> None:
    kernel = get_kernel_type("gqa_paged_decode")
    spelled = {"sm_scale": 8**-0.5, "head_dim_vo": 8, "kv_dtype": "bfloat16"}
    plain = kernel.parameters.model_validate({**SMALL, "page_size": 1})
    assert kernel.parameters.model_validate({**SMALL, "page_size": 1, **spelled}) == plain


def _inputs(
    definition: Definition, *, pages: list[int], last: list[int], queries: list[int] | None = None
) -> dict[str, Any]:
    import torch

    sizes = {"batch_size": len(pages), "len_indptr": len(pages) + 1, "num_kv_indices": sum(pages)}
    inputs = generate_inputs(definition, choose_axes(definition, {**sizes, "total_q": sum(queries or [])}), seed=3)
    inputs["kv_indptr"] = torch.tensor([0, *pages]).cumsum(0).int()
    if queries is not None:
        inputs["qo_indptr"] = torch.tensor([0, *queries]).cumsum(0).int()
    if "kv_last_page_len" in inputs:
        inputs["kv_last_page_len"] = torch.tensor(last).int()
    return inputs


def _run(definition: Definition, inputs: dict[str, Any]) -> Any:
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # the reference is what is under test
    return namespace["run"](*inputs.values())


def _check(
    inputs: dict[str, Any], outputs: Any, variant: dict[str, Any], queries: list[int], *, rows: list[int] | None = None
) -> None:
    """Compare every row and head with softmax over an explicit list of keys, in float64."""
    import torch

    output, lse = outputs
    value_dim = variant.get("head_dim_vo", SMALL["head_dim"])
    assert output.dtype == inputs["q"].dtype
    assert tuple(output.shape) == (sum(queries), SMALL["num_qo_heads"], value_dim)
    decode = "qo_indptr" not in inputs
    exact = torch.zeros(output.shape, dtype=torch.float64)
    exact_lse = torch.zeros(lse.shape, dtype=torch.float64)
    row = 0
    for sequence, count in enumerate(queries):
        keys, values = _sequence(inputs, sequence)
        for index in range(count):
            position = len(keys) - count + index
            seen = [key for key in range(len(keys)) if _sees(variant, position, key, causal=not decode)]
            for head in range(SMALL["num_qo_heads"]):
                exact[row, head], exact_lse[row, head] = _attend(inputs, variant, (row, head), keys, values, seen)
            row += 1
    chosen = list(range(row)) if rows is None else rows
    rounding = 2**-11 if output.dtype == torch.float16 else 2**-8
    torch.testing.assert_close(output.double()[chosen], exact[chosen], rtol=rounding, atol=1e-6)
    torch.testing.assert_close(lse.double()[chosen], exact_lse[chosen], rtol=1e-5, atol=1e-5)


def _sequence(inputs: dict[str, Any], sequence: int) -> tuple[list[Any], list[Any]]:
    """Walk the page table token by token."""
    first, end = inputs["kv_indptr"][sequence : sequence + 2].tolist()
    page_size = inputs["k_cache"].shape[1]
    keys, values = [], []
    for entry in range(first, end):
        page = int(inputs["kv_indices"][entry])
        is_last = entry == end - 1 and "kv_last_page_len" in inputs
        for slot in range(int(inputs["kv_last_page_len"][sequence]) if is_last else page_size):
            keys.append(inputs["k_cache"][page, slot].double() * inputs.get("k_scale", 1.0))
            values.append(inputs["v_cache"][page, slot].double() * inputs.get("v_scale", 1.0))
    return keys, values


def _sees(variant: dict[str, Any], position: int, key: int, *, causal: bool) -> bool:
    if variant.get("causal", causal) and key > position:
        return False
    if variant.get("window_left", -1) >= 0 and key < position - variant["window_left"]:
        return False
    chunk = variant.get("chunk")
    return chunk is None or math.floor(key / chunk) == math.floor(position / chunk)


def _attend(
    inputs: dict[str, Any],
    variant: dict[str, Any],
    place: tuple[int, int],
    keys: list[Any],
    values: list[Any],
    seen: list[int],
) -> tuple[Any, float]:
    import torch

    row, head = place
    kv_head = head // (SMALL["num_qo_heads"] // SMALL["num_kv_heads"])
    query = inputs["q"][row, head].double()
    cap = variant.get("logits_soft_cap")
    logits = [float(query @ keys[key][kv_head]) * variant.get("sm_scale", SMALL["head_dim"] ** -0.5) for key in seen]
    weights = [math.exp(cap * math.tanh(logit / cap) if cap else logit) for logit in logits]
    total = sum(weights) + (math.exp(float(inputs["sinks"][head])) if variant.get("sinks") else 0.0)
    output = torch.zeros(variant.get("head_dim_vo", SMALL["head_dim"]), dtype=torch.float64)
    for weight, key in zip(weights, seen, strict=True):
        output += weight / total * values[key][kv_head]
    return output, math.log2(total) if total else -math.inf
