from __future__ import annotations

from typing import Any

import pytest
import torch

from fib_tools.capture.checkpoints import dummy
from fib_tools.capture.checkpoints.configs import make_config
from fib_tools.capture.checkpoints.dummy import make_dummy
from fib_tools.errors import RequestError
from tiny_checkpoints import DEEPSEEK, LLAMA, MIXTRAL, QWEN3_MOE, logits

every_kind = pytest.mark.parametrize(
    "fields", [LLAMA, QWEN3_MOE, MIXTRAL, DEEPSEEK], ids=lambda each: each["model_type"]
)


def make(fields: dict[str, Any], **options: Any) -> Any:
    return make_dummy(make_config(fields, where="a test"), where="a test", dtype=torch.bfloat16, **options)


@every_kind
def test_weights_are_made_up_and_the_same_each_time(fields: dict[str, Any]) -> None:
    state = torch.get_rng_state()
    model = make(fields)
    assert torch.get_rng_state().equal(state), "the caller's own draws are what they would have been"
    assert logits(model).isfinite().all()
    assert logits(model).equal(logits(make(fields)))
    assert not any(each.requires_grad for each in model.parameters())
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_what_a_model_keeps_in_float32_is_so() -> None:
    model = make(DEEPSEEK)
    kept = {name: value.dtype for name, value in model.state_dict().items() if "correction_bias" in name}
    assert set(kept.values()) == {torch.float32}


def test_only_the_first_layers_are_made() -> None:
    assert make(LLAMA, layers=1).config.num_hidden_layers == 1
    with pytest.raises(RequestError, match="the model has 3 layers, not 4"):
        make(LLAMA, layers=4)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dummy, "read_memory_bytes", lambda: 100_000)
    with pytest.raises(RequestError, match=r"0 GB, and there are 0 GB of memory.*--layers"):
        make(LLAMA)


def test_of_a_model_that_also_sees_only_the_language_model_is_made() -> None:
    text = {name: value for name, value in LLAMA.items() if name != "model_type"}
    model = make({"model_type": "llama4", "text_config": {**text, "intermediate_size_mlp": 96}}, layers=1)
    assert type(model).__name__ == "Llama4ForCausalLM"
    assert logits(model).isfinite().all()
