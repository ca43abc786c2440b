"""Inputs of foreign kernels for a trial run: what their usual names mean, for op_types this project does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.model.definition import Definition
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import find_op_type
from fib_tools.op_types.rules import STOCK_RULES

__all__ = ["TRIAL_AXES", "TRIAL_SCALARS", "make_trial_inputs"]

TRIAL_SCALARS: Mapping[str, int | float] = {
    "local_expert_offset": 0,
    "n_group": 1,
    "topk_group": 1,
    "topk": 2,
    "top_k": 2,
    "causal": 1,
    "is_causal": 1,
    "window_left": -1,
    "logits_soft_cap": 0.0,
    "eps": 1e-6,
    "activation_type": 3,
    "rope_theta": 1e4,
}
"""Values of scalars where 1 is not neutral."""

TRIAL_AXES: Mapping[str, int] = {
    "total_num_pages": 23,
    "num_q_rows": 3,
    "num_rows": 3,
    "max_len": 16,
    "block_size": 128,
    "num_groups": 1,
}
"""Lengths that must fit to those of other axes, where a Definition does not say so."""

_OFFSET_WORDS = ("indptr", "cu_seq", "cu_", "offsets")
_LENGTH_WORDS = ("seq_lens", "seqlens", "lens", "lengths", "kv_len")


def make_trial_inputs(
    definition: Definition, axes: Mapping[str, int], *, seed: int, byte_budget: int
) -> dict[str, Any]:
    """Make inputs by the op_type's rules, and by name for what those do not cover."""
    import torch

    made = generate_inputs(definition, axes, seed=seed, byte_budget=byte_budget)
    op_type = find_op_type(definition.op_type)
    known = {*STOCK_RULES, *(op_type.input_rules if op_type else {})}
    generator = torch.Generator().manual_seed(seed)
    for name, spec in definition.inputs.items():
        if name in known:
            continue
        if spec.shape is None:
            made[name] = TRIAL_SCALARS.get(name, made[name])
        elif spec.dtype.value in {"int32", "int64"} and len(spec.shape) == 1:
            request = InputRequest(
                definition=definition, axes=axes, name=name, spec=spec, made=made, generator=generator
            )
            made[name] = _make_index(request)
    return made


def _make_index(request: InputRequest) -> Any:
    """Make offsets that rise in equal steps to the length they cut, or lengths of at least one."""
    import torch

    count = request.shape[0]
    if any(word in request.name for word in _OFFSET_WORDS):
        total = next(
            (request.axes[axis] for axis in ("total_q", "nnz", "nnz_kv", "num_tokens") if axis in request.axes),
            count - 1,
        )
        steps = torch.arange(count) * total // max(count - 1, 1)
        return steps.to(request.dtype)
    if any(word in request.name for word in _LENGTH_WORDS):
        return request.integers(1, max(2, request.axes.get("page_size", 2)))
    return request.integers(0, 2)
