from __future__ import annotations

from typing import Any

import pytest

from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type

SMALL = {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 8}
QUERIES, KEYS = [4, 0, 3, 2, 5], [9, 3, 0, 6, 3]
"""More keys than queries, no query, no key, more keys again, more queries than keys."""


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "gqa_ragged_prefill_causal_h32_kv8_d128"),
        ({"causal": False}, "gqa_ragged_prefill_full_h32_kv8_d128"),
        ({"head_dim_vo": 64, "window_left": 511}, "gqa_ragged_prefill_causal_h32_kv8_d128_vo64_w511"),
        ({"chunk": 8192, "sinks": True}, "gqa_ragged_prefill_causal_h32_kv8_d128_sinks_chunk8192"),
        ({"logits_soft_cap": 30.0}, "gqa_ragged_prefill_causal_h32_kv8_d128_cap30"),
    ],
)
def test_the_name_is_the_canonical_one(parameters: dict[str, Any], name: str) -> None:
    llama = {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128}
    assert get_kernel_type("gqa_ragged_prefill").build({**llama, **parameters}).name == name


def test_the_interface_is_that_of_the_dataset() -> None:
    definition = get_kernel_type("gqa_ragged_prefill").build(SMALL)
    assert list(definition.axes) == ["num_qo_heads", "num_kv_heads", "head_dim", "len_indptr", "total_q", "total_kv"]
    assert {name: spec.shape for name, spec in definition.inputs.items()} == {
        "q": ["total_q", "num_qo_heads", "head_dim"],
        "k": ["total_kv", "num_kv_heads", "head_dim"],
        "v": ["total_kv", "num_kv_heads", "head_dim"],
        "qo_indptr": ["len_indptr"],
        "kv_indptr": ["len_indptr"],
        "sm_scale": None,
    }
    assert list(definition.outputs) == ["output", "lse"]


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"causal": False},
        {"window_left": 2},
        {"causal": False, "window_left": 1},
        {"chunk": 4},
        {"sinks": True},
        {"sinks": True, "window_left": 1},
        {"head_dim_vo": 4, "sm_scale": 0.6},
        {"kv_dtype": "float8_e5m2"},
    ],
    ids=str,
)
def test_the_reference_agrees_with_torch_under_an_explicit_mask(variant: dict[str, Any]) -> None:
    import torch

    definition = get_kernel_type("gqa_ragged_prefill").build({**SMALL, **variant})
    inputs = _inputs(definition)
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # the reference is what is under test
    output, lse = namespace["run"](*inputs.values())
    assert (output.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    first_query, first_key = 0, 0
    for count, held in zip(QUERIES, KEYS, strict=True):
        rows, columns = slice(first_query, first_query + count), slice(first_key, first_key + held)
        exact, exact_lse = _attend(inputs, rows, columns, variant)
        torch.testing.assert_close(output[rows].double(), exact, rtol=2**-8, atol=1e-6)
        torch.testing.assert_close(lse[rows].double(), exact_lse, rtol=1e-5, atol=1e-5)
        first_query, first_key = first_query + count, first_key + held


def test_a_soft_cap_bounds_every_logit() -> None:
    """With a tiny cap all keys weigh the same, whatever the logits: the output is the plain mean of the values."""
    import torch

    definition = get_kernel_type("gqa_ragged_prefill").build({**SMALL, "logits_soft_cap": 1e-4, "causal": False})
    inputs = _inputs(definition)
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # the reference is what is under test
    output, lse = namespace["run"](*inputs.values())
    mean = inputs["v"][:9].double().mean(dim=0).repeat_interleave(2, dim=0)
    torch.testing.assert_close(output[:4].double(), mean.expand(4, -1, -1), rtol=2**-7, atol=1e-3)
    torch.testing.assert_close(lse[:4], torch.full((4, 4), 9.0).log2(), rtol=0, atol=2e-4)


def _inputs(definition: Any) -> dict[str, Any]:
    import torch

    sizes = {"len_indptr": len(QUERIES) + 1, "total_q": sum(QUERIES), "total_kv": sum(KEYS)}
    inputs = generate_inputs(definition, choose_axes(definition, sizes), seed=5)
    inputs["qo_indptr"] = torch.tensor([0, *QUERIES]).cumsum(0).int()
    inputs["kv_indptr"] = torch.tensor([0, *KEYS]).cumsum(0).int()
    return inputs


def _attend(inputs: dict[str, Any], rows: slice, columns: slice, variant: dict[str, Any]) -> tuple[Any, Any]:
    """Attend in float64; a sink is a key of logit `sink` and value 0, which an additive mask can say."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    scale = variant.get("sm_scale", SMALL["head_dim"] ** -0.5)
    q = inputs["q"][rows].double().transpose(0, 1)
    k = (inputs["k"][columns].double() * inputs.get("k_scale", 1.0)).repeat_interleave(2, dim=1).transpose(0, 1)
    v = (inputs["v"][columns].double() * inputs.get("v_scale", 1.0)).repeat_interleave(2, dim=1).transpose(0, 1)
    bias = _mask(q.shape[1], k.shape[1], variant).expand(q.shape[0], -1, -1)
    if variant.get("sinks"):
        k, v = (
            torch.cat([part, torch.zeros_like(part[:, :1] if part.shape[1] else q[:, :1])], dim=1) for part in (k, v)
        )
        sink = inputs["sinks"].double()[:, None, None].expand(-1, q.shape[1], 1)
        bias = torch.cat([bias, sink], dim=-1)
    logits = q @ k.transpose(1, 2) * scale + bias
    lse = torch.logsumexp(logits, dim=-1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    if k.shape[1] == 0 or q.shape[1] == 0:
        exact = torch.zeros(q.shape[0], q.shape[1], v.shape[-1], dtype=torch.float64)
    else:
        exact = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).nan_to_num(0.0)
    return exact.transpose(0, 1), lse.transpose(0, 1)


def _mask(count: int, held: int, variant: dict[str, Any]) -> Any:
    import torch

    seen = torch.ones(count, held, dtype=torch.bool)
    if variant.get("causal", True):
        seen = seen.tril(diagonal=held - count)
    if "window_left" in variant:
        seen = seen.triu(diagonal=held - count - variant["window_left"])
    if "chunk" in variant:
        positions = torch.arange(held - count, held)
        same = positions[:, None].div(variant["chunk"], rounding_mode="floor") == torch.arange(held).div(
            variant["chunk"], rounding_mode="floor"
        )
        seen = seen & same
    return torch.zeros(count, held, dtype=torch.float64).masked_fill(~seen, -torch.inf)
