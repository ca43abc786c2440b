"""The least work of fused experts: the weights of those that are chosen, and the products of the tokens they get.

Where the routing is inside, its logits are drawn anew for each call. What one draw gives is counted less four
deviations, so that other draws do not fall below; what every draw has (top_k different experts) is never taken off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fib_tools.model.definition import DType
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["moe_work"]

_DEVIATIONS = 4.0
_WEIGHTS = ("gemm1_weights", "gemm2_weights")
_PER_EXPERT = ("gemm1_weights_scale", "gemm2_weights_scale", "gemm1_bias", "gemm2_bias")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Routed:
    """What reaches the experts of this device at least."""

    experts: int
    tokens: int
    pairs: int
    """Of a token and an expert."""


def moe_work(request: WorkRequest) -> Work | None:
    """Count a fused mixture of experts, with its routing inside or before it."""
    if not request.has("hidden_states", *_WEIGHTS):
        return None
    chosen = _find_chosen(request)
    routing = [name for name in ("routing_logits", "routing_bias", "topk_weights") if request.has(name)]
    routed = _Routed(experts=0, tokens=0, pairs=0)
    if chosen is not None:
        routed = _count(request, chosen, exact=request.has("topk_ids"))
    weights = [name for name in (*_WEIGHTS, *_PER_EXPERT) if request.has(name)]
    tokens = chosen.shape[0] if chosen is not None else 0
    activations = [name for name in ("hidden_states", "hidden_states_scale") if request.has(name)]
    hidden, inner = request.shape(next(iter(request.definition.outputs)))[-1], request.axes.get("intermediate_size", 0)
    return Work(
        read=request.read(*routing)
        + sum(request.read_rows(name, routed.experts) for name in weights)
        + request.read(*activations) * routed.tokens // max(tokens, 1),
        written=request.written(),
        flops=2 * routed.pairs * hidden * (request.shape("gemm1_weights")[1] + inner),
        unit=_find_unit(request),
    )


def _find_unit(request: WorkRequest) -> str:
    """Find the arithmetic: tokens may be rounded to e4m3 before packed weights, whose tolerance allows for it."""
    tokens, weights = (request.definition.inputs[name].dtype for name in ("hidden_states", "gemm1_weights"))
    if weights in {DType.INT8, DType.INT32}:
        return "fp4" if tokens is DType.INT8 else "fp8"
    return request.unit("gemm1_weights")


def _find_chosen(request: WorkRequest) -> torch.Tensor | None:
    """Find the experts of each token, [tokens, top_k], from given ids or from logits as the reference does."""
    if request.has("topk_ids"):
        return request.integers("topk_ids")
    count = request.find_constant("TOP_K")
    if count is None or not request.has("routing_logits"):
        return None
    scores = request.inputs["routing_logits"].float().cpu()
    if request.has("routing_bias"):
        is_root = "softplus" in request.definition.reference
        positive = scores.exp().log1p().sqrt() if is_root else scores.sigmoid()
        scores = positive + request.inputs["routing_bias"].float().cpu()
    chosen: torch.Tensor = _keep_groups(request, scores).topk(count, dim=-1).indices
    return chosen


def _keep_groups(request: WorkRequest, scores: torch.Tensor) -> torch.Tensor:
    """Leave the groups of experts that are chosen first: by their two best with a bias, else by the best."""
    import torch

    groups, kept = request.find_constant("N_GROUP"), request.find_constant("TOPK_GROUP")
    if not groups or not kept or scores.shape[-1] % groups:
        return scores
    grouped = scores.unflatten(1, (groups, -1))
    best = grouped.topk(min(2 if request.has("routing_bias") else 1, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
    dropped = torch.ones_like(best, dtype=torch.bool).scatter_(1, best.topk(kept, dim=-1).indices, False)
    kept_scores: torch.Tensor = grouped.masked_fill(dropped[..., None], -torch.inf).flatten(1)
    return kept_scores


def _count(request: WorkRequest, chosen: torch.Tensor, *, exact: bool) -> _Routed:
    """Count what is routed to this device; without `exact`, what is so in nearly all other draws as well."""
    tokens, top_k = chosen.shape
    local, total = request.shape("gemm1_weights")[0], request.axes.get("num_experts", chosen.shape[1])
    first = int(request.integers("local_expert_offset")) if request.has("local_expert_offset") else 0
    here = (chosen >= first) & (chosen < first + local)
    experts, pairs = int(chosen[here].unique().numel()), int(here.sum())
    reached = int(here.any(dim=-1).sum())
    if exact:
        return _Routed(experts=experts, tokens=reached, pairs=pairs)
    always = max(top_k - max(total - local, 0), 0) if tokens else 0
    return _Routed(
        experts=max(_lower(experts, min(experts, local - experts)), always),
        tokens=tokens if always else _lower(reached, min(reached, tokens - reached)),
        pairs=tokens * top_k if local >= total else max(_lower(pairs, pairs * top_k), tokens * always),
    )


def _lower(count: int, variance: int) -> int:
    return max(math.floor(count - _DEVIATIONS * math.sqrt(variance + 1)), 0)
