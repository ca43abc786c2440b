from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_softmax_conforms_under_its_canonical_name(check_conformance: Callable[..., None]) -> None:
    check_conformance("softmax", "softmax_d128", dim=128)
    check_conformance("softmax", "softmax_d128", dim=128, dtype="bfloat16")


def test_softmax_is_that_of_float64_and_large_scores_do_not_overflow(
    try_kernel: Callable[..., Any], run_reference: Callable[..., Any]
) -> None:
    import torch

    trial = try_kernel("softmax", dim=96)
    scores = trial.inputs["input"] * 300
    (got,) = run_reference(trial.definition, scores)
    torch.testing.assert_close(got.double(), torch.softmax(scores.double(), dim=-1), rtol=1e-4, atol=1e-7)
