"""Many draws of a few rows, for the statistical test of samplers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fib_tools.evaluate._runner.calls import Caller
from fib_tools.evaluate._runner.workload import OpenWorkload
from fib_tools.evaluate.judge.sampling import catch_distribution, repeat_rows
from fib_tools.evaluate.judge.slots import SlotLayout
from fib_tools.model.definition import Definition

__all__ = ["draw_samples"]


def draw_samples(
    caller: Caller, workload: OpenWorkload, arena: torch.Tensor, message: Mapping[str, Any], definition: Definition
) -> dict[str, Any]:
    """Draw as the judge asks: `rows`, `repeat`, `batched`, `axes` of the repeated batch, and a seed for each call.

    With `catches`, the probabilities that the reference draws from are left at the arena's beginning instead, float64
    `[rows, tokens]`, if they can be seen; `shape` in the answer says so.
    """
    inputs = workload.make(message["seed"])
    if message["catches"]:
        few = repeat_rows(inputs, message["rows"], 1, batched=message["batched"])
        probabilities = catch_distribution(caller.run, few)
        if probabilities is not None:
            data = probabilities.contiguous().view(-1).view(torch.uint8)
            arena[: len(data)].copy_(data)
            return {"shape": list(probabilities.shape)}
    many = repeat_rows(inputs, message["rows"], message["repeat"], batched=message["batched"])
    layout = SlotLayout.of(definition, message["axes"])
    for slot, seed in enumerate(message["seeds"]):
        torch.random.manual_seed(seed)  # torch.compile puts another in the place of `torch.manual_seed`
        places = layout.view(arena, slot)
        outputs = {name: value.clone() for name, value in places.items()}
        result = caller.call(many, outputs, caller.plan(many, workload.plan.values) if caller.has_setup else {})
        caller.deliver(result, many, outputs, places)
    if arena.is_cuda:
        torch.cuda.synchronize()
    return {"shape": None}
