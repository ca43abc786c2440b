"""Calls of FlashInfer's fused experts, which are told the experts of each token and not how they were chosen.

A Definition that routes by itself is given logits that lead to the same experts with the same weights: their logarithms,
and far less for all other experts. So a Workload has the load of the experts that the engine had.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fib_tools.capture.collection.dumps import Call, TensorFacts, read_rows
from fib_tools.capture.collection.observation import Observation, Seen, see_all
from fib_tools.errors import FormatError

if TYPE_CHECKING:
    import torch

__all__ = ["EXPERTS_FUNCTION", "choose_by_law", "observe_experts"]

EXPERTS_FUNCTION = "cutlass_fused_moe"
_HIDDEN = frozenset({"routing", "norm_topk_prob", "n_group", "topk_group", "routed_scaling_factor"})
"""How the engine chose."""
_FAR = 30.0
"""Below the least chosen logit: exp(-30) is nothing in float32."""


def observe_experts(call: Call, *, skew: float | None = None) -> Observation:
    """Read a call of bfloat16 experts; with `skew`, tokens are routed anew by a Zipf law of this exponent.

    Raises:
        FormatError: its experts are of another format, or their choice is not in the dump.
    """
    settings = {**call.defaults, **call.arguments}
    tensors = see_all(call)
    first, second = (tensors.get(f"fc{number}_expert_weights") for number in (1, 2))
    if first is None or second is None or {first.dtype, second.dtype} != {"bfloat16"}:
        raise FormatError("only experts of bfloat16 are read from this function", where=call.folder.name)
    local, ranks, rank = first.shape[0], _read_size(settings, "ep_size", 1), _read_size(settings, "ep_rank", 0)
    ids, weights = _read_choice(call, tensors.get("token_selected_experts"))
    total = local * ranks
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < total:
        raise FormatError(f"it names an expert that is none of {total}", where=call.folder.name)
    if skew is not None:
        ids = choose_by_law(ids.shape[0], ids.shape[1], total, skew=skew)
    logits = _make_logits(ids, weights, total)
    return Observation(
        call=call,
        tensors={
            "hidden_states": tensors["input"],
            "gemm1_weights": first,
            "gemm2_weights": second,
            "routing_logits": Seen(shape=tuple(logits.shape), dtype="float32", values=logits, is_kept=True),
            "topk_ids": Seen(shape=tuple(ids.shape), dtype="int32", values=ids),
            "topk_weights": tensors["token_final_scales"],
        },
        scalars={"local_expert_offset": local * rank, "routed_scaling_factor": _find_scaling(weights)},
        facts={"top_k": ids.shape[1], "num_experts": total, "num_local_experts": local},
        hidden=_HIDDEN,
        experts=ids,
        notes=(f"tokens are routed by a Zipf law of the exponent {skew:g}",) if skew is not None else (),
        is_made_up=skew is not None,
    )


def _read_size(settings: dict[str, Any], name: str, default: int) -> int:
    value = settings.get(name, default)
    return value if isinstance(value, int) and value >= default else default


def _read_choice(call: Call, chosen: Seen | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the experts of each token, and read their weights."""
    scales = call.arguments.get("token_final_scales")
    if chosen is None or not isinstance(scales, TensorFacts):
        raise FormatError("it is given no experts", where=call.folder.name)
    if len(chosen.shape) != 2 or chosen.shape != scales.shape:
        raise FormatError(f"its choice has the shapes {chosen.shape} and {scales.shape}", where=call.folder.name)
    if chosen.values is None:
        raise FormatError(chosen.problem or "its experts are no integers", where=call.folder.name)
    return chosen.values.int(), read_rows(scales, range(scales.shape[0])).float()


def _make_logits(ids: torch.Tensor, weights: torch.Tensor, total: int) -> torch.Tensor:
    """Make logits `[tokens, total]` whose softmax over the chosen experts gives their weights."""
    import torch

    shares = weights / weights.sum(dim=1, keepdim=True)
    chosen = shares.clamp_min(math.exp(-_FAR)).log().nan_to_num(nan=0.0)
    lowest = chosen.min(dim=1, keepdim=True).values - _FAR if chosen.numel() else chosen.sum(dim=1, keepdim=True)
    return lowest.expand(ids.shape[0], total).clone().scatter_(1, ids.to(torch.int64), chosen)


def _find_scaling(weights: torch.Tensor) -> float:
    """Find what the weights of a token sum to: its factor, where they are shares."""
    return float(f"{float(weights.sum(dim=1).median()):.4g}") if weights.numel() else 1.0


def choose_by_law(tokens: int, top_k: int, total: int, *, skew: float) -> torch.Tensor:
    """Choose distinct experts for each token, the n-th most popular in proportion to n^-skew; 0: all alike.

    Popularity has nothing to do with an expert's number. `[tokens, top_k]`, int32; equal arguments give equal experts.
    """
    import torch

    generator = torch.Generator().manual_seed(tokens * 31 + total)
    popularity = -skew * torch.arange(1, total + 1).log()[torch.randperm(total, generator=generator)]
    drawn = torch.rand(tokens, total, generator=generator).clamp(1e-30, 1 - 2**-24)
    # the largest of log-probabilities with Gumbel noise are a draw without replacement (Yellott, 1977)
    return (popularity - (-drawn.log()).log()).topk(top_k, dim=1).indices.int()
