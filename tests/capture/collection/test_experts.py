"""Fused experts: Definitions that route by themselves get logits that lead to the experts that the engine chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fib_tools.capture.collection.collector import Collector, take_calls
from fib_tools.capture.collection.experts import choose_by_law
from fib_tools.capture.collection.matching import Target
from fib_tools.op_types.registry import get_kernel_type
from level10 import Recording

EXPERTS, TOP_K, HIDDEN, INNER = 8, 2, 16, 8
PARAMETERS: dict[str, Any] = {
    "num_experts": EXPERTS,
    "top_k": TOP_K,
    "num_local_experts": EXPERTS,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "routing": "renormalize",
}


def collect(folder: Path, skew: float | None = None, **changes: Any) -> Collector:
    kernel = get_kernel_type("moe_bf16")
    parameters = kernel.parameters(**{**PARAMETERS, **changes}).model_dump(mode="json")
    target = Target(definition=kernel.build(parameters), kernel="moe_bf16", parameters=parameters)
    collector = Collector(targets=[target], limit=4, expert_skew=skew)
    take_calls(folder, collector)
    return collector


IDS = torch.tensor([[5, 2], [2, 7], [2, 0]], dtype=torch.int32)
WEIGHTS = torch.tensor([[0.7, 0.3], [0.1, 0.9], [0.5, 0.5]])


@pytest.mark.parametrize("local", [8, 4])
def test_the_logits_lead_to_the_same_experts_with_the_same_weights(tmp_path: Path, local: int) -> None:
    ranks = EXPERTS // local
    Recording(tmp_path).experts(IDS, WEIGHTS * 2.5, local=local, ep_size=ranks, ep_rank=ranks - 1)
    collector = collect(tmp_path, num_local_experts=local)
    assert not collector.refused
    (tally,) = collector.tallies.values()
    (candidate,) = tally.held.values()
    shares, chosen = candidate.tensors["routing_logits"].softmax(dim=1).topk(TOP_K)
    order = IDS.argsort(dim=1)
    assert torch.equal(chosen.sort(dim=1).values.int(), IDS.gather(1, order))
    torch.testing.assert_close(shares.gather(1, chosen.argsort(dim=1)), WEIGHTS.gather(1, order))
    assert candidate.scalars == {"local_expert_offset": EXPERTS - local, "routed_scaling_factor": 2.5}
    assert candidate.axes == {"seq_len": 3}
    assert tally.experts == {2: 3, 5: 1, 7: 1, 0: 1}
    assert not tally.is_made_up


def test_a_definition_that_is_given_the_experts_gets_them(tmp_path: Path) -> None:
    Recording(tmp_path).experts(IDS, WEIGHTS)
    (tally,) = collect(tmp_path, routing="given").tallies.values()
    (candidate,) = tally.held.values()
    assert torch.equal(candidate.tensors["topk_ids"], IDS)
    assert "routing_logits" not in candidate.tensors


def test_tokens_can_be_routed_anew(tmp_path: Path) -> None:
    Recording(tmp_path).experts(IDS.repeat(100, 1), WEIGHTS.repeat(100, 1))
    (tally,) = collect(tmp_path, skew=1.5).tallies.values()
    assert tally.is_made_up
    assert sum(tally.experts.values()) == 600
    assert len(tally.experts) == EXPERTS
    assert any("Zipf" in note for note in tally.notes)


def test_a_law_without_an_exponent_sends_tokens_to_all_experts_alike_and_a_steep_one_does_not() -> None:
    for skew, low, high in ((0.0, 1.0, 1.3), (1.0, 8.0, 30.0)):
        ids = choose_by_law(4096, 4, 64, skew=skew)
        assert (ids.sort(dim=1).values.diff(dim=1) > 0).all(), "an expert came twice"
        counts = ids.flatten().bincount(minlength=64).double()
        assert low <= float(counts.max() / counts.mean()) <= high, skew
        assert torch.equal(ids, choose_by_law(4096, 4, 64, skew=skew))


@pytest.mark.parametrize(
    ("ids", "keywords", "reason"),
    [
        (torch.tensor([[5, 9]], dtype=torch.int32), {}, "none of 8"),
        (torch.tensor([[5, 2, 1]], dtype=torch.int32), {}, "its choice has the shapes"),
        (torch.tensor([[5, 2]], dtype=torch.int32), {"fc1": torch.zeros(8, 16, 16)}, "only experts of bfloat16"),
    ],
)
def test_calls_that_are_not_understood_are_refused(
    tmp_path: Path, ids: torch.Tensor, keywords: dict[str, Any], reason: str
) -> None:
    Recording(tmp_path).experts(ids, WEIGHTS[:1], **keywords)
    collector = collect(tmp_path)
    assert not collector.tallies
    assert [reason in text for _, text in collector.refused] == [True]
