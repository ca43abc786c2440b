from __future__ import annotations

from typing import Any

import pytest

from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type

SIZES: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 256, "top_k": 1, "routing": "llama4"}


def _inputs(kernel: str, **parameters: Any) -> dict[str, Any]:
    definition = get_kernel_type(kernel).build({**SIZES, **parameters})
    return generate_inputs(definition, choose_axes(definition))


@pytest.mark.parametrize(
    ("total", "local", "offset"), [(128, 16, 48), (128, 128, 0), (384, 48, 144), (16, 8, 0), (4, 1, 1)]
)
def test_the_device_is_one_in_the_middle(total: int, local: int, offset: int) -> None:
    inputs = _inputs("moe_bf16", num_experts=total, num_local_experts=local)
    assert inputs["local_expert_offset"] == offset
    assert offset % local == 0
    assert offset + local <= total


def test_every_other_token_is_for_this_device() -> None:
    inputs = _inputs("moe_bf16", num_experts=128, num_local_experts=16)
    best = inputs["routing_logits"].argmax(dim=1)
    assert all(48 <= expert < 64 for expert in best[::2].tolist())


@pytest.mark.parametrize(
    "kernel", ["moe_fp8_block_scale", "moe_fp8_tensor", "moe_nvfp4", "moe_mxfp4", "moe_bf16", "moe_w4a16"]
)
@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_results_neither_vanish_nor_overflow(kernel: str, activation: str) -> None:
    definition = get_kernel_type(kernel).build(
        {**SIZES, "num_experts": 8, "num_local_experts": 8, "activation": activation}
    )
    inputs = generate_inputs(definition, choose_axes(definition, {"seq_len": 16}))
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # our own reference
    size = namespace["run"](*inputs.values()).float().square().mean().sqrt().item()
    assert 0.2 < size < 20


def test_the_rules_serve_the_definitions_of_others() -> None:
    """A published raw dump may leave out axes and take scalars as tensors."""
    definition = get_kernel_type("moe_bf16").build({**SIZES, "num_experts": 8, "num_local_experts": 8})
    document = definition.model_dump(mode="json")
    document["inputs"]["local_expert_offset"] = {"shape": [], "dtype": "int32"}
    inputs = generate_inputs(type(definition).model_validate(document), choose_axes(definition))
    assert inputs["local_expert_offset"].item() == 0
