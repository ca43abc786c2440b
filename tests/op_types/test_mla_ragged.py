from __future__ import annotations

import math
from typing import Any

import pytest

from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type

QUERIES, KEYS = [4, 0, 2, 5], [9, 3, 0, 3]


@pytest.mark.parametrize(
    ("parameters", "name"),
    [({}, "mla_ragged_prefill_causal_h16_qk192_vo128"), ({"causal": False}, "mla_ragged_prefill_full_h16_qk192_vo128")],
)
def test_the_name_is_the_canonical_one(parameters: dict[str, Any], name: str) -> None:
    assert get_kernel_type("mla_ragged_prefill").build({"num_qo_heads": 16, **parameters}).name == name


def test_values_and_outputs_are_narrower_than_keys() -> None:
    definition = get_kernel_type("mla_ragged_prefill").build({"num_qo_heads": 16})
    assert {name: spec.shape for name, spec in definition.inputs.items()} == {
        "q": ["total_q", "num_qo_heads", "head_dim_qk"],
        "k": ["total_kv", "num_qo_heads", "head_dim_qk"],
        "v": ["total_kv", "num_qo_heads", "head_dim_vo"],
        "qo_indptr": ["len_indptr"],
        "kv_indptr": ["len_indptr"],
        "sm_scale": None,
    }
    assert definition.outputs["output"].shape == ["total_q", "num_qo_heads", "head_dim_vo"]
    assert definition.const_axes == {"num_qo_heads": 16, "head_dim_qk": 192, "head_dim_vo": 128}


@pytest.mark.parametrize("scale", [None, 0.9])
@pytest.mark.parametrize("causal", [True, False])
def test_the_reference_agrees_with_torch(*, causal: bool, scale: float | None) -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    sizes = {"num_qo_heads": 3, "head_dim_qk": 12, "head_dim_vo": 8}
    definition = get_kernel_type("mla_ragged_prefill").build({**sizes, "causal": causal, "sm_scale": scale})
    axes = choose_axes(definition, {"len_indptr": 5, "total_q": sum(QUERIES), "total_kv": sum(KEYS)})
    inputs = generate_inputs(definition, axes, seed=2)
    inputs["qo_indptr"] = torch.tensor([0, *QUERIES]).cumsum(0).int()
    inputs["kv_indptr"] = torch.tensor([0, *KEYS]).cumsum(0).int()
    assert inputs["sm_scale"] == pytest.approx(scale or 12**-0.5)
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # the reference is what is under test
    output, lse = namespace["run"](*inputs.values())
    q, k, v = (inputs[name].double().transpose(0, 1) for name in "qkv")
    row = column = 0
    for count, held in zip(QUERIES, KEYS, strict=True):
        rows, columns = slice(row, row + count), slice(column, column + held)
        seen = torch.ones(count, held, dtype=torch.bool)
        seen = seen.tril(diagonal=held - count) if causal else seen
        bias = torch.zeros(count, held, dtype=torch.float64).masked_fill(~seen, -torch.inf)
        exact = torch.zeros(3, count, 8, dtype=torch.float64)
        if count and held:
            parts = q[:, rows], k[:, columns], v[:, columns]
            exact = scaled_dot_product_attention(*parts, attn_mask=bias, scale=scale).nan_to_num(0.0)
        logits = q[:, rows] @ k[:, columns].transpose(1, 2) * inputs["sm_scale"] + bias
        torch.testing.assert_close(output[rows].double(), exact.transpose(0, 1), rtol=2**-8, atol=1e-6)
        expected = logits.logsumexp(dim=-1).transpose(0, 1) / math.log(2)
        torch.testing.assert_close(lse[rows].double(), expected, rtol=1e-5, atol=1e-5)
        row, column = row + count, column + held
