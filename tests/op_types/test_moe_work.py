from __future__ import annotations

from typing import Any

import pytest
import torch

from fib_tools.model.definition import Definition
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import plan_inputs
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.op_types.work import Work, find_work

SIZES: dict[str, Any] = {
    "num_experts": 16,
    "num_local_experts": 16,
    "top_k": 4,
    "hidden_size": 256,
    "intermediate_size": 128,
    "routing": "renormalize",
}
EXPERT = 3 * 256 * 128 * 2
"""Bytes of one expert's two weights in bfloat16."""


def _build(kernel_id: str = "moe_bf16", **more: Any) -> Definition:
    return get_kernel_type(kernel_id).build({**SIZES, **more})


def _find(definition: Definition, tokens: int, seed: int = 0, **fixed: Any) -> Work:
    axes = choose_axes(definition, {"seq_len": tokens})
    return find_work(definition, axes, plan_inputs(definition, axes, seed=0, device="cpu", fixed=fixed).make(seed))


def test_given_experts_are_counted_exactly() -> None:
    definition = _build(routing="given", num_local_experts=8)
    ids = torch.tensor([[4, 5, 6, 0], [4, 1, 2, 3], [0, 1, 2, 3]], dtype=torch.int32)
    work = _find(definition, 3, topk_ids=ids, local_expert_offset=4)
    assert work == Work(
        read=3 * 4 * 4 + 3 * EXPERT + 2 * 256 * 2, written=3 * 256 * 2, flops=4 * 2 * 3 * 256 * 128, unit="bf16"
    )


def test_one_token_reads_its_experts_and_no_others() -> None:
    work = _find(_build(), 1)
    assert work.read == 16 * 4 + 4 * EXPERT + 256 * 2
    assert work.flops == 4 * 2 * 3 * 256 * 128


def test_many_tokens_read_nearly_all_experts() -> None:
    work = _find(_build(num_experts=64, num_local_experts=64), 500)
    assert 60 * EXPERT <= work.read - 500 * (64 * 4 + 256 * 2) <= 64 * EXPERT
    assert work.flops == 500 * 4 * 2 * 3 * 256 * 128


@pytest.mark.parametrize(
    "routing",
    [
        {"routing": "renormalize"},
        {"routing": "ds", "n_group": 4, "topk_group": 2},
        {"routing": "sigmoid_bias"},
        {"routing": "sqrtsoftplus_bias"},
        {"routing": "softmax_group", "n_group": 4, "topk_group": 2},
        {"routing": "sparsemixer", "top_k": 2},
        {"routing": "llama4", "top_k": 1},
    ],
)
@pytest.mark.parametrize("local", [4, 16])
def test_no_draw_needs_less_than_is_counted_from_another(routing: dict[str, Any], local: int) -> None:
    definition = _build(num_local_experts=local, **routing)
    tokens = 48
    axes = choose_axes(definition, {"seq_len": tokens})
    plan = plan_inputs(definition, axes, seed=0, device="cpu")
    counted = [find_work(definition, axes, plan.make(seed)) for seed in range(10)]
    pairs = max(work.flops for work in counted) // (2 * 3 * 256 * 128)
    experts = max(work.read for work in counted) // EXPERT
    for seed in range(10):
        ids = _route(definition, plan.make(seed))
        first = plan.make(seed)["local_expert_offset"]
        here = ids[(ids >= first) & (ids < first + local)]
        assert pairs <= here.numel()
        assert experts <= here.unique().numel()


def _route(definition: Definition, inputs: dict[str, Any]) -> torch.Tensor:
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # our own reference
    bias = [inputs["routing_bias"].float()] if "routing_bias" in inputs else []
    experts: torch.Tensor = namespace["route"](inputs["routing_logits"], *bias, 1.0)[1]
    return experts


@pytest.mark.parametrize(
    ("kernel_id", "unit"),
    [
        ("moe_bf16", "bf16"),
        ("moe_fp8_block_scale", "fp8"),
        ("moe_fp8_tensor", "fp8"),
        ("moe_mxfp4", "fp8"),
        ("moe_w4a16", "fp8"),
        ("moe_nvfp4", "fp4"),
    ],
)
def test_the_arithmetic_is_the_fastest_that_the_tolerance_allows(kernel_id: str, unit: str) -> None:
    assert _find(_build(kernel_id), 4).unit == unit


def test_scales_of_chosen_experts_are_read_with_their_weights() -> None:
    work = _find(_build("moe_fp8_block_scale"), 1)
    expert = 3 * 256 * 128 + 4 * (2 * 2 + 2 * 1)
    assert work.read == 16 * 4 + 4 * expert + 256 + 4 * 2


def test_a_routing_that_is_not_understood_reads_no_experts() -> None:
    definition = _build()
    changed = definition.model_copy(update={"reference": definition.reference.replace("TOP_K = 4", "TOP_K = int('4')")})
    assert _find(changed, 4) == Work(read=4 * 16 * 4, written=4 * 256 * 2, unit="bf16")
