"""Experts: modules whose forward takes the tokens, and for each token the experts that were chosen and their weights."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.functions import name_dtype
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Operator, Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_experts"]

_CHOICES = (("top_k_index", "top_k_weights"), ("router_indices", "routing_weights"))
_KERNELS = {"bfloat16": "moe_bf16"}


def patch_experts(patches: Patches, watch: Watch, modules: Iterable[torch.nn.Module]) -> None:
    """Watch the classes of modules whose forward has those parameters, or passes on what it gets to such a one."""
    for kind in {type(module) for module in modules}:
        names = inspect.signature(inspect.unwrap(kind.forward)).parameters
        if any(all(name in names for name in choice) for choice in _CHOICES):
            patches.wrap(kind, "forward", partial(watch.wrap, _EXPERTS))


def _key(module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, *more: Any, **options: Any) -> Hashable:
    del more, options
    return type(module), hidden_states.shape, top_k_index.shape, hidden_states.dtype


def _describe(
    key: Any,
    result: Any,
    module: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    *more: Any,
    **options: Any,
) -> Call | Unmapped:
    """Describe all but how experts are chosen, which happens elsewhere."""
    del key, result, more, options
    weight = getattr(module, "down_proj", None)
    dtype = name_dtype(hidden_states.dtype)
    if weight is None or weight.dim() != 3 or dtype not in _KERNELS:  # experts, rows, columns
        return Unmapped(
            what=type(module).__name__, reason=f"no kernel type has experts with weights like these in {dtype}"
        )
    hidden = hidden_states.shape[-1]
    inner = next((size for size in weight.shape[1:] if size != hidden), hidden)
    parameters = {
        "num_experts": weight.shape[0],
        "num_local_experts": weight.shape[0],
        "top_k": top_k_index.shape[-1],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "activation": "swiglu_oai" if hasattr(module, "alpha") and hasattr(module, "limit") else "swiglu",
        "expert_bias": getattr(module, "down_proj_bias", None) is not None,
    }
    factor = getattr(getattr(module, "config", None), "routed_scaling_factor", None)
    scalars = {"local_expert_offset": 0, "routed_scaling_factor": 1.0 if factor is None else float(factor)}
    axes = {"seq_len": hidden_states.numel() // hidden}
    return Call(
        kernel=_KERNELS[dtype], parameters=parameters, axes=axes, scalars=scalars, rows=tuple(hidden_states.shape[:-1])
    )


_EXPERTS = Operator(name="experts", key=_key, describe=_describe)
