"""How tokens choose experts, as reference source: each kind is one `route`, giving float32 weights and expert ids.

Equal scores go to the lowest index. Sources: DeepSeek-V2 (2024) and DeepSeek-V3 (2024) for groups; Llama 4, MiniMax-M2
and DeepSeek-V4 as in their transformers modules; SparseMixer-v2 in Liu et al. (2024), arXiv 2409.12136.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent

from fib_tools.op_types.moe_parameters import RoutingParameters

__all__ = ["routing_constants", "routing_sentence", "write_route"]

_SELECT = """
    def select(scores, count):
        # torch.topk leaves open which of equal scores it takes; here it is the lowest index.
        return torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :count]
"""

_DEFAULT = """
    def route(logits, scaling):
        scores = torch.softmax(logits, dim=-1)
        experts = select(scores, TOP_K)
        return scores.gather(1, experts) * scaling, experts
"""

_RENORMALIZE = """
    def route(logits, scaling):
        experts = select(logits, TOP_K)
        return torch.softmax(logits.gather(1, experts), dim=-1) * scaling, experts
"""

_RENORMALIZE_NAIVE = """
    def route(logits, scaling):
        scores = torch.softmax(logits, dim=-1)
        experts = select(scores, TOP_K)
        weights = scores.gather(1, experts)
        return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * scaling, experts
"""

_DS = """
    def route(logits, bias, scaling):
        scores = torch.sigmoid(logits)
        groups = (scores + bias).unflatten(1, (N_GROUP, -1))
        group_scores = groups.sort(dim=-1, descending=True).values[..., :2].sum(dim=-1)
        dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, select(group_scores, TOPK_GROUP), False)
        experts = select(groups.masked_fill(dropped[..., None], -torch.inf).flatten(1), TOP_K)
        weights = scores.gather(1, experts)
        return {weights} * scaling, experts
"""

_SIGMOID_BIAS = """
    def route(logits, bias, scaling):
        scores = torch.sigmoid(logits)
        experts = select(scores + bias, TOP_K)
        weights = scores.gather(1, experts)
        return {weights} * scaling, experts
"""

_SIGMOID = """
    def route(logits, scaling):
        scores = torch.sigmoid(logits)
        experts = select(scores, TOP_K)
        weights = scores.gather(1, experts)
        return {weights} * scaling, experts
"""

_SQRTSOFTPLUS_BIAS = """
    def route(logits, bias, scaling):
        scores = torch.sqrt(torch.nn.functional.softplus(logits))
        experts = select(scores + bias, TOP_K)
        weights = scores.gather(1, experts)
        return {weights} * scaling, experts
"""

_SOFTMAX_GROUP = """
    def route(logits, scaling):
        scores = torch.softmax(logits, dim=-1)
        groups = scores.unflatten(1, (N_GROUP, -1))
        group_scores = groups.amax(dim=-1)
        dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, select(group_scores, TOPK_GROUP), False)
        experts = select(groups.masked_fill(dropped[..., None], -torch.inf).flatten(1), TOP_K)
        weights = scores.gather(1, experts)
        return {weights} * scaling, experts
"""

_LLAMA4 = """
    def route(logits, scaling):
        experts = select(logits, TOP_K)
        return torch.sigmoid(logits.gather(1, experts)) * scaling, experts
"""

_TOPK = """
    def route(logits, scaling):
        experts = select(logits, TOP_K)
        return logits.gather(1, experts) * scaling, experts
"""

_SPARSEMIXER = """
    def route(logits, scaling):
        # Each choice is weighted by a softmax over the logits within 2 * JITTER_EPS of it, relatively.
        left, weights, experts = logits, [], []
        for _ in range(TOP_K):
            expert = select(left, 1)
            best = left.gather(1, expert)
            far = (best - logits) / logits.abs().clamp(min=best) > 2 * JITTER_EPS
            weights.append(torch.softmax(left.masked_fill(far, -torch.inf), dim=-1).gather(1, expert))
            experts.append(expert)
            left = left.scatter(1, expert, -torch.inf)
        return torch.cat(weights, dim=-1) * scaling, torch.cat(experts, dim=-1)
"""

_GIVEN = """
    def route(weights, experts, scaling):
        return weights * scaling, experts
"""

_ROUTES: Mapping[str, str] = {
    "default": _DEFAULT,
    "renormalize": _RENORMALIZE,
    "renormalize_naive": _RENORMALIZE_NAIVE,
    "ds": _DS,
    "sigmoid_bias": _SIGMOID_BIAS,
    "sigmoid": _SIGMOID,
    "softmax_group": _SOFTMAX_GROUP,
    "llama4": _LLAMA4,
    "topk": _TOPK,
    "sparsemixer": _SPARSEMIXER,
    "sqrtsoftplus_bias": _SQRTSOFTPLUS_BIAS,
    "given": _GIVEN,
}

_JITTER_EPS = 0.01
"""`router_jitter_noise` of Phi-3.5-MoE, which its inference uses as well."""

_SENTENCES: Mapping[str, str] = {
    "default": "Weights are a softmax over all logits; the top_k are taken.",
    "renormalize": "The top_k logits are taken; weights are a softmax over them.",
    "renormalize_naive": "Weights are a softmax over all logits; the top_k are taken and made to sum to one.",
    "ds": (
        "Sigmoid scores plus a bias choose: the groups with the largest sums of two, then the top_k in them. "
        "Weights are the scores without the bias"
    ),
    "sigmoid_bias": "Sigmoid scores plus a bias choose the top_k. Weights are the scores without the bias",
    "sigmoid": "The top_k of sigmoid scores are taken, which are the weights",
    "softmax_group": (
        "A softmax over all logits chooses: the groups with the largest score, then the top_k in them. "
        "Weights are the scores"
    ),
    "llama4": "The top_k logits are taken; weights are their sigmoids.",
    "topk": "The top_k logits are taken, which are the weights.",
    "sparsemixer": (
        "Two experts, one after the other; the weight is a softmax over what is left of the logits "
        f"within {2 * _JITTER_EPS} of the largest, relatively."
    ),
    "sqrtsoftplus_bias": (
        "Scores sqrt(softplus(logit)) plus a bias choose the top_k. Weights are the scores without the bias"
    ),
    "given": "Experts and weights are chosen before.",
}


def routing_sentence(parameters: RoutingParameters) -> str:
    """Say how experts are chosen and weighted."""
    text = _SENTENCES[parameters.routing]
    if not text.endswith("."):
        text += ", made to sum to one." if parameters.normalizes else ", as they are."
    return f"{text} Weights are multiplied by routed_scaling_factor."


def routing_constants(parameters: RoutingParameters) -> dict[str, int | float]:
    """Give what `write_route` reads as module constants."""
    constants: dict[str, int | float] = {} if parameters.is_given else {"TOP_K": parameters.top_k}
    if parameters.is_grouped:
        constants["N_GROUP"], constants["TOPK_GROUP"] = parameters.groups
    if parameters.routing == "sparsemixer":
        constants["JITTER_EPS"] = _JITTER_EPS
    return constants


def write_route(parameters: RoutingParameters) -> str:
    """Write `route(logits, [bias,] scaling)`, or `route(weights, experts, scaling)` of a choice made before."""
    weights = "weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)" if parameters.normalizes else "weights"
    body = dedent(_ROUTES[parameters.routing]).replace("{weights}", weights)
    return body.strip() if parameters.is_given else f"{dedent(_SELECT).strip()}\n\n\n{body.strip()}"
