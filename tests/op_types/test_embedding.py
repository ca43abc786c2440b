from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_embedding_conforms_under_its_canonical_name(check_conformance: Callable[..., None]) -> None:
    check_conformance("embedding", "embedding_v32000_d64", vocab_size=32000, hidden_size=64)


def test_embedding_is_that_of_torch(try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel("embedding", vocab_size=50, hidden_size=8)
    assert torch.equal(trial.outputs["output"], torch.nn.functional.embedding(**_named(trial.inputs)))


def test_token_ids_reach_all_of_a_small_vocabulary(try_kernel: Callable[..., Any]) -> None:
    trial = try_kernel("embedding", {"num_tokens": 200}, vocab_size=5, hidden_size=8)
    assert sorted(set(trial.inputs["input_ids"].tolist())) == [0, 1, 2, 3, 4]


def _named(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"input": inputs["input_ids"], "weight": inputs["weight"]}
