from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fib_tools.op_types.moe_parameters import RoutingParameters
from fib_tools.op_types.registry import get_kernel_type

EXPERTS, HIDDEN, TOKENS = 16, 24, 40
KINDS = (
    "default",
    "renormalize",
    "renormalize_naive",
    "ds",
    "sigmoid_bias",
    "sigmoid",
    "softmax_group",
    "llama4",
    "topk",
    "sparsemixer",
    "sqrtsoftplus_bias",
)


def _config(**more: Any) -> Any:
    return SimpleNamespace(
        num_experts_per_tok=4,
        num_experts=EXPERTS,
        num_local_experts=EXPERTS,
        hidden_size=HIDDEN,
        routed_scaling_factor=2.5,
        n_group=4,
        topk_group=2,
        **more,
    )


def _fill(module: Any, scale: float = 0.5) -> Any:
    import torch

    generator = torch.Generator().manual_seed(3)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return module.eval()


def _hidden() -> Any:
    import torch

    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(4))


def _dense(weights: Any, ids: Any) -> Any:
    import torch

    return torch.zeros(TOKENS, EXPERTS, dtype=torch.float64).scatter_(1, ids.long(), weights.double())


def _compare(run_reference: Callable[..., Any], routed: Any, inputs: list[Any], **parameters: Any) -> None:
    """Hold our choice to that of a module that answered with logits, weights and ids."""
    import torch

    definition = get_kernel_type("moe_routing").build({"num_experts": EXPERTS, "top_k": 4, **parameters})
    weights, ids = run_reference(definition, routed[0].float(), *inputs)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    torch.testing.assert_close(_dense(weights, ids), _dense(routed[1], routed[2]), rtol=1e-5, atol=1e-7)
    assert torch.equal(ids.sort(dim=1).values, routed[2].sort(dim=1).values.int())


def test_ds_is_the_router_of_deepseek_v3(run_reference: Callable[..., Any]) -> None:
    import torch
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    for normalized in (True, False):
        router = _fill(DeepseekV3TopkRouter(_config(norm_topk_prob=normalized)))
        with torch.no_grad():
            routed = router(_hidden())
        groups = {"routing": "ds", "n_group": 4, "topk_group": 2, "norm_topk_prob": normalized}
        _compare(run_reference, routed, [router.e_score_correction_bias, 2.5], **groups)


def test_softmax_group_is_the_router_of_deepseek_v2(run_reference: Callable[..., Any]) -> None:
    import torch
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    router = _fill(DeepseekV2TopkRouter(_config(topk_method="group_limited_greedy")))
    with torch.no_grad():
        routed = router(_hidden())
    groups = {"routing": "softmax_group", "n_group": 4, "topk_group": 2, "norm_topk_prob": False}
    _compare(run_reference, routed, [2.5], **groups)


def test_sigmoid_bias_is_the_router_of_minimax_m2(run_reference: Callable[..., Any]) -> None:
    import torch
    from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2TopKRouter

    bias = torch.randn(EXPERTS, generator=torch.Generator().manual_seed(5)) * 0.3
    with torch.no_grad():
        routed = _fill(MiniMaxM2TopKRouter(_config()))(_hidden(), bias)
    _compare(run_reference, routed, [bias, 1.0], routing="sigmoid_bias")


def test_sqrtsoftplus_bias_is_the_router_of_deepseek_v4(run_reference: Callable[..., Any]) -> None:
    import torch
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4TopKRouter

    router = _fill(DeepseekV4TopKRouter(_config(scoring_func="sqrtsoftplus")))
    with torch.no_grad():
        routed = router(_hidden())
    _compare(run_reference, routed, [router.e_score_correction_bias, 2.5], routing="sqrtsoftplus_bias")


@pytest.mark.parametrize(
    ("routing", "normalized"), [("default", False), ("renormalize", True), ("renormalize_naive", True)]
)
def test_softmax_kinds_are_the_router_of_qwen3(
    routing: str,
    normalized: bool,  # noqa: FBT001  # pytest passes it by name
    run_reference: Callable[..., Any],
) -> None:
    import torch
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    with torch.no_grad():
        routed = _fill(Qwen3MoeTopKRouter(_config(norm_topk_prob=normalized)))(_hidden())
    _compare(run_reference, routed, [1.0], routing=routing)


def test_renormalize_is_the_router_of_gpt_oss(run_reference: Callable[..., Any]) -> None:
    import torch
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

    with torch.no_grad():
        routed = _fill(GptOssTopKRouter(_config()))(_hidden())
    _compare(run_reference, routed, [1.0], routing="renormalize")


def test_llama4_is_the_router_of_llama4(run_reference: Callable[..., Any]) -> None:
    import torch
    from transformers.models.llama4.modeling_llama4 import Llama4Router

    with torch.no_grad():
        scores, logits = _fill(Llama4Router(_config()))(_hidden())
    weights, ids = scores.sort(dim=1, descending=True)
    assert (weights[:, 4:] == 0).all()
    _compare(run_reference, (logits, weights[:, :4], ids[:, :4]), [1.0], routing="llama4")


@pytest.mark.parametrize("spread", [0.5, 0.002])
def test_sparsemixer_is_the_router_of_phi_3_5_moe(spread: float, run_reference: Callable[..., Any]) -> None:
    """A small spread leaves several logits within the jitter, so that weights are below one."""
    import torch
    from transformers.models.phimoe.modeling_phimoe import sparsemixer

    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(6)) * spread + (spread < 0.1)
    weights, ids = sparsemixer(logits, jitter_eps=0.01, training=False, top_k=2)
    assert spread > 0.1 or bool((weights < 0.5).any())
    _compare(run_reference, (logits, weights, ids), [1.0], routing="sparsemixer", top_k=2)


@pytest.mark.parametrize("normalized", [True, False])
def test_sigmoid_takes_the_largest_and_leaves_or_normalizes_them(
    normalized: bool,  # noqa: FBT001  # pytest passes it by name
    run_reference: Callable[..., Any],
) -> None:
    import torch

    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(7))
    weights, ids = [], []
    for row in logits.double().tolist():
        best = sorted(range(EXPERTS), key=lambda expert: -row[expert])[:4]
        scores = [1 / (1 + math.exp(-row[expert])) for expert in best]
        weights.append([score / (sum(scores) if normalized else 1) * 2.5 for score in scores])
        ids.append(best)
    routed = (logits, torch.tensor(weights), torch.tensor(ids))
    _compare(run_reference, routed, [2.5], routing="sigmoid", norm_topk_prob=normalized)


def test_topk_gives_the_logits_themselves(run_reference: Callable[..., Any]) -> None:
    import torch

    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(8))
    best = logits.topk(4, dim=1)
    _compare(run_reference, (logits, best.values * 0.5, best.indices), [0.5], routing="topk")


@pytest.mark.parametrize("routing", KINDS)
def test_equal_scores_go_to_the_lowest_index(routing: str, run_reference: Callable[..., Any]) -> None:
    import torch

    top_k = 2 if routing == "sparsemixer" else 4
    groups = {"n_group": 4, "topk_group": 2} if routing in {"ds", "softmax_group"} else {}
    definition = get_kernel_type("moe_routing").build(
        {"num_experts": EXPERTS, "top_k": top_k, "routing": routing, **groups}
    )
    bias = [torch.zeros(EXPERTS)] if "routing_bias" in definition.inputs else []
    _, ids = run_reference(definition, torch.ones(3, EXPERTS), *bias, 1.0)
    assert ids.tolist() == [list(range(top_k))] * 3


@pytest.mark.parametrize("routing", KINDS)
def test_every_kind_is_described_accepted_and_runs_on_made_inputs(routing: str, try_kernel: Callable[..., Any]) -> None:
    import torch
    from flashinfer_bench.data import Definition as PeerDefinition

    from fib_tools.model.base import to_document

    trial = try_kernel("moe_routing", num_experts=64, top_k=2, routing=routing)
    definition = trial.definition
    PeerDefinition.model_validate(to_document(definition))
    named = {**definition.axes, **definition.inputs, **definition.outputs}
    assert all(item.description for item in named.values())
    assert list(definition.outputs) == ["topk_weights", "topk_ids"]
    weights, ids = trial.outputs.values()
    assert tuple(weights.shape) == tuple(ids.shape) == (6, 2)
    assert torch.isfinite(weights).all()
    assert [len(set(row)) for row in ids.tolist()] == [2] * 6


def test_the_deepseek_choice_conforms_to_flashinfers_template(check_conformance: Callable[..., None]) -> None:
    check_conformance(
        "moe_routing",
        "moe_routing_ds_topk8_ng8_kg4_e256",
        num_experts=256,
        top_k=8,
        routing="ds",
        n_group=8,
        topk_group=4,
    )


def test_other_choices_have_no_template() -> None:
    template = get_kernel_type("moe_routing").template
    assert template is not None
    assert template(RoutingParameters(num_experts=8, top_k=2, routing="renormalize")) is None
    assert template(RoutingParameters(num_experts=8, top_k=2, routing="ds", norm_topk_prob=False)) is None
