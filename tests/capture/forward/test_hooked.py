from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import ModelHook, add_hook_to_module

from fib_tools.capture.forward.observe import observe
from fib_tools.capture.forward.watch import Tally
from tiny_forward import ARCHITECTURES, OTHERS, make_model, make_prompt

PROMPT = make_prompt((12, 8))


class Moving(ModelHook):
    """Moves what a layer takes, as between two GPUs."""

    def pre_forward(self, _: torch.nn.Module, *inputs: Any, **options: Any) -> tuple[Any, Any]:
        return tuple(map(_copy, inputs)), {name: _copy(value) for name, value in options.items()}


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def run(model: Any) -> tuple[list[tuple[str, int]], torch.Tensor]:
    with torch.no_grad(), observe(model) as watch:
        made = model.generate(**PROMPT, max_new_tokens=3, do_sample=False)
    return describe(watch.tallies), made


def describe(tallies: Iterable[Tally]) -> list[tuple[str, int]]:
    return sorted((repr(tally.call), tally.count) for tally in tallies)


def compare(kind: str, hooked: Any) -> None:
    wanted, made = run(make_model(kind))
    before = {name: vars(module).copy() for name, module in hooked.named_modules()}
    found, same = run(hooked)
    assert found == wanted
    assert same.equal(made)
    kept: Mapping[str, Any] = {name: vars(module) for name, module in hooked.named_modules()}
    assert all(kept[name].get("_old_forward") is own.get("_old_forward") for name, own in before.items())


@pytest.mark.parametrize("kind", [*ARCHITECTURES, *OTHERS])
def test_weights_that_are_brought_for_each_call_change_nothing_that_is_seen(kind: str) -> None:
    model = make_model(kind)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {each.device.type for each in model.parameters()} == {"meta"}
    compare(kind, model)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_neither_do_weights_that_are_read_from_the_disk(kind: str, tmp_path: Path) -> None:
    model = make_model(kind)
    disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    compare(kind, model)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen3_moe"])
def test_a_sum_that_is_moved_is_still_one(kind: str) -> None:
    model: Any = make_model(kind)
    for layer in model.model.layers:
        add_hook_to_module(layer, Moving())
        add_hook_to_module(layer.input_layernorm, Moving())
        add_hook_to_module(layer.post_attention_layernorm, Moving())
    compare(kind, model)
