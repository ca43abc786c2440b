from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.registry import get_kernel_type


def test_topk_conforms_under_its_canonical_name(check_conformance: Callable[..., None]) -> None:
    check_conformance("topk", "topk_d64_k8", dim=64, k=8)


def test_topk_takes_the_largest_and_says_where_they_stand(try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel("topk", dim=50, k=5)
    rows, values, indices = trial.inputs["input"], trial.outputs["values"], trial.outputs["indices"]
    assert torch.equal(rows.gather(-1, indices), values)
    assert torch.equal(values, torch.topk(rows, 5, dim=-1).values)


def test_no_more_is_taken_than_a_row_has() -> None:
    with pytest.raises(ValidationError, match="k 9 is more than the row's 8"):
        get_kernel_type("topk").build({"dim": 8, "k": 9})
