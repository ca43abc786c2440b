"""Routers: modules that choose experts for each token, told by what they return: logits, weights, chosen experts.

How they choose is told by the weights, which a softmax of all logits gives in one way and a sigmoid of each in another.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Described, Operator, Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_routers"]

_BIAS = "e_score_correction_bias"
_TOLERANCE = 2e-2
"""Weights may be stored in bfloat16, whose steps are 1/256 of a value."""


def patch_routers(patches: Patches, watch: Watch, modules: Iterable[torch.nn.Module]) -> None:
    """Watch the classes of modules that say how many experts there are, and how many a token gets; not their products."""
    for kind in {type(module) for module in modules if _is_router(module)}:
        patches.wrap(kind, "forward", partial(watch.wrap, _ROUTING))


def _is_router(module: torch.nn.Module) -> bool:
    """A router has the numbers and the weight that gives a logit an expert; the block around it has no such weight."""
    numbers = (getattr(module, "num_experts", None), getattr(module, "top_k", None))
    weight = vars(module).get("_parameters", {}).get("weight")
    return all(type(number) is int for number in numbers) and weight is not None and weight.shape[0] == numbers[0]


def _key(module: Any, hidden_states: torch.Tensor, *more: Any, **options: Any) -> Hashable:
    del more, options
    return type(module), module.num_experts, module.top_k, hidden_states.shape, hidden_states.dtype


def _describe(key: Any, result: Any, module: Any, hidden_states: torch.Tensor, *more: Any, **options: Any) -> Described:
    del key
    sizes = [tuple(getattr(each, "shape", ())) for each in result] if isinstance(result, tuple) else []
    tokens = hidden_states.numel() // max(1, hidden_states.shape[-1])
    if sizes != [(tokens, module.num_experts), (tokens, module.top_k), (tokens, module.top_k)]:
        return Unmapped(what="routing", kernel="moe_routing", reason="it returns no logits, weights and chosen experts")
    has_bias = getattr(module, _BIAS, None) is not None or _BIAS in options or bool(more)
    kept = tuple(each.detach().clone() for each in result)  # what it returned may be written to before the run is over
    return partial(_choose, module, kept, tuple(hidden_states.shape[:-1]), has_bias=has_bias)


def _choose(module: Any, result: tuple[torch.Tensor, ...], rows: tuple[int, ...], *, has_bias: bool) -> Call | Unmapped:
    logits, weights, chosen = result
    factor = float(getattr(module, "routed_scaling_factor", None) or 1.0)
    told = _tell_routing(logits.float(), weights.float() / factor, chosen, is_sigmoid=has_bias)
    if told is None:
        return Unmapped(
            what="routing", kernel="moe_routing", reason="its weights are those of no routing that is known"
        )
    groups = getattr(module, "num_group", None)
    parameters: dict[str, Any] = {"num_experts": module.num_experts, "top_k": module.top_k}
    if has_bias:
        parameters |= {"routing": "sigmoid_bias" if groups is None else "ds", "norm_topk_prob": told}
    else:
        parameters["routing"] = "renormalize" if told else "default"
    if has_bias and groups is not None:
        parameters |= {"n_group": int(groups), "topk_group": int(module.topk_group)}
    return Call(
        kernel="moe_routing",
        parameters=parameters,
        axes={"num_tokens": logits.shape[0]},
        scalars={"routed_scaling_factor": factor},
        rows=rows,
    )


def _tell_routing(
    logits: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, *, is_sigmoid: bool
) -> bool | None:
    """Tell whether the weights of the chosen experts were made to sum to one; None if they come about in another way."""
    import torch

    scores = logits.sigmoid() if is_sigmoid else logits.softmax(dim=-1)
    own = scores.gather(1, chosen)
    for is_normed, expected in ((True, own / own.sum(dim=-1, keepdim=True)), (False, own)):
        if torch.allclose(weights, expected, rtol=_TOLERANCE, atol=1e-4):
            return is_normed
    return None


_ROUTING = Operator(name="routing", key=_key, describe=_describe, is_whole=False)
"""The product with the router's weight is a kernel of its own."""
