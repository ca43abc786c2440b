from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.registry import get_kernel_type

EXPERTS, TOP_K, VOCAB, HIDDEN, TOKENS = 16, 4, 50, 24, 40
SMALL = {"num_routed_experts": EXPERTS, "topk": TOP_K, "vocab": VOCAB}


def _router() -> Any:
    import torch
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HashRouter

    config = SimpleNamespace(
        num_experts_per_tok=TOP_K,
        num_local_experts=EXPERTS,
        hidden_size=HIDDEN,
        scoring_func="sqrtsoftplus",
        routed_scaling_factor=1.5,
        vocab_size=VOCAB,
    )
    router = DeepseekV4HashRouter(config).eval()
    generator = torch.Generator().manual_seed(3)
    router.weight.data.copy_(torch.randn(EXPERTS, HIDDEN, generator=generator))
    router.tid2eid.copy_(torch.rand(VOCAB, EXPERTS, generator=generator).argsort(dim=1)[:, :TOP_K])
    return router


def test_the_choice_is_that_of_the_hash_router_of_deepseek_v4(run_reference: Callable[..., Any]) -> None:
    """Transformers multiplies the weights by the scaling factor at once; here the expert kernel does."""
    import torch

    router, generator = _router(), torch.Generator().manual_seed(4)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    input_ids = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    with torch.no_grad():
        logits, weights, ids = router(hidden, input_ids)
    definition = get_kernel_type("hash_topk").build(SMALL)
    ours, chosen = run_reference(definition, logits, input_ids, router.tid2eid.to(torch.int32))
    assert torch.equal(chosen, ids.int())
    torch.testing.assert_close(ours * 1.5, weights, rtol=1e-5, atol=1e-7)


def test_weights_are_shares_of_the_scores(try_kernel: Callable[..., Any]) -> None:
    trial = try_kernel("hash_topk", **SMALL)
    logits, input_ids, table = (value.tolist() for value in trial.inputs.values())
    for token, number in enumerate(input_ids):
        scores = [math.sqrt(math.log1p(math.exp(logits[token][expert]))) for expert in table[number]]
        shares = [score / sum(scores) for score in scores]
        assert trial.outputs["topk_ids"][token].tolist() == table[number]
        assert trial.outputs["topk_weights"][token].tolist() == pytest.approx(shares, rel=1e-5)


def test_the_kernel_conforms_to_flashinfers_template(check_conformance: Callable[..., None]) -> None:
    check_conformance("hash_topk", "hash_topk_e256_k6_v129280", num_routed_experts=256, topk=6, vocab=129280)


def test_a_made_table_names_distinct_experts(try_kernel: Callable[..., Any]) -> None:
    for experts in (4, 7, 16):
        table = try_kernel("hash_topk", **{**SMALL, "num_routed_experts": experts}).inputs["tid2eid"].tolist()
        assert all(len(set(row)) == TOP_K and 0 <= min(row) <= max(row) < experts for row in table)


def test_what_flashinfers_warp_cannot_hold_has_no_api() -> None:
    kind = get_kernel_type("hash_topk")
    wide = {**SMALL, "num_routed_experts": 64, "topk": 33}
    assert kind.find_fi_api(SMALL) == "flashinfer.fused_moe.hash_topk.hash_topk"
    assert kind.find_fi_api(wide) is None
    assert kind.find_template_call(wide) is None
    with pytest.raises(ValidationError):
        kind.build({**SMALL, "topk": 17})
