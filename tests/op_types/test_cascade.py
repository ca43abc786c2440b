from __future__ import annotations

import math
from typing import Any

from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type


def _run(*inputs: Any) -> Any:
    definition = get_kernel_type("merge_state").build({"num_heads": 2, "head_dim": 4})
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # the reference is what is under test
    return namespace["run"](*inputs)


def test_the_name_and_the_interface_are_canonical() -> None:
    definition = get_kernel_type("merge_state").build({"num_heads": 32, "head_dim": 128})
    assert definition.name == "merge_state_h32_d128"
    assert list(definition.inputs) == ["v_a", "s_a", "v_b", "s_b"]
    assert list(definition.outputs) == ["v_merged", "s_merged"]


def test_merging_two_halves_is_attention_over_all_keys() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 2, 12, generator=generator, dtype=torch.float64) * 3
    values = torch.randn(12, 2, 4, generator=generator, dtype=torch.float64)

    def attend(keys: slice) -> tuple[Any, Any]:
        part = logits[..., keys]
        output = torch.einsum("qhk,khd->qhd", part.softmax(-1), values[keys])
        return output, (part.logsumexp(-1) / math.log(2)).float()

    (v_a, s_a), (v_b, s_b), (exact, exact_sum) = attend(slice(0, 7)), attend(slice(7, 12)), attend(slice(0, 12))
    merged, total = _run(v_a.float(), s_a, v_b.float(), s_b)
    torch.testing.assert_close(merged.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total, exact_sum, rtol=1e-5, atol=1e-5)


def test_the_output_is_rounded_once() -> None:
    import torch

    definition = get_kernel_type("merge_state").build({"num_heads": 2, "head_dim": 4})
    inputs = generate_inputs(definition, choose_axes(definition), seed=1)
    merged, total = _run(*inputs.values())
    weight_a, weight_b = (torch.exp2(inputs[name].double()) for name in ("s_a", "s_b"))
    exact = (inputs["v_a"].double() * weight_a[..., None] + inputs["v_b"].double() * weight_b[..., None]) / (
        weight_a + weight_b
    )[..., None]
    assert (merged.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(merged.double(), exact, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(total.double(), (weight_a + weight_b).log2(), rtol=1e-5, atol=1e-5)


def test_an_empty_state_gives_way_to_the_other_and_two_empty_ones_stay_empty() -> None:
    import torch

    v_a = torch.tensor([[[3.0]], [[0.0]], [[0.0]]])
    v_b = torch.tensor([[[0.0]], [[5.0]], [[0.0]]])
    s_a = torch.tensor([[2.0], [-torch.inf], [-torch.inf]])
    s_b = torch.tensor([[-torch.inf], [300.0], [-torch.inf]])
    merged, total = _run(v_a, s_a, v_b, s_b)
    assert merged.flatten().tolist() == [3.0, 5.0, 0.0]
    assert total.flatten().tolist() == [2.0, 300.0, -math.inf]
