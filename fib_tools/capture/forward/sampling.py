"""Sampling: the filters that generate() applies to scores, then the draw."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Operator, Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_sampling"]

_FILTERS = {"TopKLogitsWarper": "top_k", "TopPLogitsWarper": "top_p", "MinPLogitsWarper": "min_p"}
_KERNELS = {
    ("top_k",): "top_k_sampling_from_probs",
    ("top_p",): "top_p_sampling_from_probs",
    ("top_k", "top_p"): "top_k_top_p_sampling_from_probs",
    ("min_p",): "min_p_sampling_from_probs",
}


def patch_sampling(patches: Patches, watch: Watch) -> None:
    """Watch the filters, and the draws after them."""
    import torch
    from transformers.generation import logits_process

    applied: dict[str, float] = {}
    for kind, name in _FILTERS.items():
        patches.wrap(getattr(logits_process, kind), "__call__", partial(_watch_filter, watch, name, applied))
    patches.wrap(torch, "multinomial", partial(watch.wrap, _make_draw(applied)))


def _watch_filter(
    watch: Watch, name: str, applied: dict[str, float], original: Callable[..., Any]
) -> Callable[..., Any]:
    def call(self: Any, *inputs: Any, **options: Any) -> Any:
        applied[name] = float(getattr(self, name))
        return watch.call_inside(original, self, *inputs, **options)

    return call


def _make_draw(applied: dict[str, float]) -> Operator:
    def key(input: torch.Tensor, num_samples: int, *more: Any, **options: Any) -> Hashable:  # noqa: A002
        """Take the filters too: they were applied for this draw."""
        del more, options
        filters = tuple(sorted(applied.items()))
        applied.clear()
        return input.shape, num_samples, filters

    return Operator(name="draw", key=key, describe=_describe_draw)


def _describe_draw(
    key: Any,
    result: Any,
    input: torch.Tensor,  # noqa: A002
    num_samples: int,
    *more: Any,
    **options: Any,
) -> Call | Unmapped:
    del result, more, options
    filters, probs, samples = key[2], input, num_samples
    kernel = _KERNELS.get(tuple(name for name, _ in filters))
    if kernel is None or samples != 1 or probs.dim() != 2:  # of axes
        names = ", ".join(name for name, _ in filters) or "no filter"
        return Unmapped(what="sampling", reason=f"no kernel type draws {samples} of {list(probs.shape)} after {names}")
    batch, vocabulary = probs.shape
    given = {name: (int(value) if name == "top_k" else value,) * batch for name, value in filters}
    return Call(kernel=kernel, parameters={"vocab_size": vocabulary}, axes={"batch_size": batch}, given=given)
