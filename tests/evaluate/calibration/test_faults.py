from __future__ import annotations

from typing import Any

import torch

from fib_tools.evaluate.calibration.faults import OUTPUT_FAULTS, list_source_faults, widen
from fib_tools.op_types.registry import get_kernel_type

_SUMS = """
import torch

def run(x, w):
    assert x.shape[0] <= 4
    count = 0
    while count < 3:
        count += 1
    scores = torch.einsum("rk,ck->rc", x.to(torch.float32), w.float())
    mask = torch.arange(scores.shape[-1]) < 2
    return (scores @ w.float()).masked_fill(~mask, 0.0).sum(dim=-1) + torch.logsumexp(scores, dim=-1)
"""


def _load(source: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102  # our own source
    return namespace["run"]


def test_every_sum_product_and_mask_is_broken_once() -> None:
    names = [fault.name for fault in list_source_faults(_SUMS.replace("~mask", "~mask[:3]"))]
    kinds = [name.partition(":")[0] for name in names]
    assert kinds == ["bf16-arithmetic", *["half-sum"] * 4, *["dropped-term"] * 4, "off-by-one"]
    assert len(set(names)) == len(names)


def test_half_a_sum_is_half_a_sum() -> None:
    definition = get_kernel_type("rmsnorm").build({"hidden_size": 64})
    half = next(fault for fault in list_source_faults(definition.reference) if fault.kind == "half-sum")
    x, weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.ones(64).bfloat16()
    wide = x.float()
    want = (wide * torch.rsqrt(wide[:, :32].square().mean(dim=-1, keepdim=True) + 1e-6)).bfloat16()
    assert torch.equal(_load(half.source)(x, weight), want)


def test_a_dropped_term_of_a_product_is_left_out_on_both_sides() -> None:
    source = "import torch\n\ndef run(a, b):\n    return torch.matmul(a, b)\n"
    dropped = next(fault for fault in list_source_faults(source) if fault.kind == "dropped-term")
    a, b = torch.randn(2, 5), torch.randn(5, 3)
    assert torch.equal(_load(dropped.source)(a, b), a[:, :4] @ b[:4])


def test_an_einsum_loses_a_term_in_every_operand() -> None:
    source = 'import torch\n\ndef run(a, b):\n    return torch.einsum("rhgk,khd->rhgd", a, b)\n'
    half = next(fault for fault in list_source_faults(source) if fault.kind == "half-sum")
    a, b = torch.randn(2, 3, 2, 6), torch.randn(6, 3, 4)
    assert torch.allclose(_load(half.source)(a, b), torch.einsum("rhgk,khd->rhgd", a[..., :3], b[:3]), atol=1e-6)


def test_a_mask_is_off_by_one() -> None:
    source = "import torch\n\ndef run(x):\n    return torch.where(torch.arange(4) < 2, x, 0)\n"
    fault = next(fault for fault in list_source_faults(source) if fault.kind == "off-by-one")
    assert _load(fault.source)(torch.ones(4)).tolist() == [1, 1, 1, 0]


def test_loops_and_assertions_are_left_alone() -> None:
    flipped = [fault.source for fault in list_source_faults(_SUMS) if fault.kind == "off-by-one"]
    assert all("count < 3" in source and "x.shape[0] <= 4" in source for source in flipped)


def test_float64_takes_the_place_of_float32_only() -> None:
    assert widen("x.float().to(torch.float32).to(torch.bfloat16)") == "x.double().to(torch.float64).to(torch.bfloat16)"


def test_faults_of_an_output_change_it_and_keep_its_form() -> None:
    right, other = torch.randn(4, 6).bfloat16(), torch.randn(4, 6).bfloat16()
    for change in OUTPUT_FAULTS.values():
        wrong = change(right, other)
        assert wrong is not None
        assert (wrong.shape, wrong.dtype) == (right.shape, right.dtype)
        assert not torch.equal(wrong, right)
    assert OUTPUT_FAULTS["swapped-rows"](torch.ones(1, 6), other) is None
    assert OUTPUT_FAULTS["stale"](right, torch.ones(2, 6)) is None
