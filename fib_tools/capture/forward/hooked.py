"""Modules whose forward accelerate has put its own in front of, which brings weights from another device before each call.

A hook keeps the forward that the class had when it was put there, and calls that one: what is watched since is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_hooked"]

_KEPT = "_old_forward"
_HOOK = "_hf_hook"


def patch_hooked(patches: Patches, watch: Watch, modules: Iterable[torch.nn.Module]) -> None:
    """Have hooks call what classes have by now; to be done when all classes are watched."""
    for module in modules:
        kept = vars(module).get(_KEPT)
        if kept is not None and getattr(kept, "__self__", None) is module:
            patches.wrap(module, _KEPT, partial(_bind, module))
        hook = vars(module).get(_HOOK)
        if hook is not None:
            patches.wrap(type(hook), "pre_forward", lambda original: _carry_sums(watch, original))


def _bind(module: torch.nn.Module, _kept: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*inputs: Any, **options: Any) -> Any:
        return type(module).forward(module, *inputs, **options)

    return forward


def _carry_sums(watch: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    """Have a sum that a hook moves to another device taken for the same sum there."""

    def pre_forward(hook: Any, module: Any, *inputs: Any, **options: Any) -> Any:
        moved, moved_options = original(hook, module, *inputs, **options)
        places = zip((*inputs, *options.values()), (*moved, *moved_options.values()), strict=True)
        for before, after in places:
            if after is not before and watch.is_sum(before):
                watch.note_sum(after)
        return moved, moved_options

    return pre_forward
