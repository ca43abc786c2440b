"""Watching a model: everything that is replaced while it runs, and put back after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.attention import patch_attention
from fib_tools.capture.forward.experts import patch_experts
from fib_tools.capture.forward.functions import patch_activations, patch_choices, patch_functions
from fib_tools.capture.forward.hooked import patch_hooked
from fib_tools.capture.forward.norms import patch_norms
from fib_tools.capture.forward.passes import Passes, Witness
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.products import patch_products
from fib_tools.capture.forward.recurrent import patch_recurrent
from fib_tools.capture.forward.rotary import patch_rotary
from fib_tools.capture.forward.routing import patch_routers
from fib_tools.capture.forward.sampling import patch_sampling
from fib_tools.capture.forward.watch import Watch

if TYPE_CHECKING:
    import torch

__all__ = ["observe", "watch_model"]


@contextmanager
def observe(
    *models: torch.nn.Module, page_size: int = 16, new_ones: bool = False, witness: Witness | None = None
) -> Iterator[Watch]:
    """Count what models compute; with `new_ones` also every transformers model that is made meanwhile.

    Decode is described in pages of `page_size` tokens, as a serving engine keeps them. With a `witness`, a pass whose
    inputs have the shapes of two before it, which made the same calls, is counted like those but for its attention, where
    one layer stands for those that are alike: for code that generates with one model, and computes nothing else meanwhile.
    Passes of which the witness tells that they did something else are counted as doubtful, and looked into from then on.
    """
    watch = Watch()
    with watch_model(watch, *models, page_size=page_size, new_ones=new_ones, witness=witness):
        yield watch


@contextmanager
def watch_model(
    watch: Watch,
    *models: torch.nn.Module,
    page_size: int = 16,
    new_ones: bool = False,
    witness: Witness | None = None,
) -> Iterator[None]:
    """Have a watch called for each operator; see `observe`."""
    watch.is_plain = not new_ones and all(_is_plain(model) for model in models)
    with Patches() as always, Patches() as attention, Patches() as direct, Patches() as patches:
        patch_attention(attention, direct, watch, page_size=page_size)
        patch_choices(always, watch)
        patch_sampling(always, watch)
        patch_functions(patches, watch)
        patch_products(patches, watch)
        for model in models:
            _patch_modules(patches, watch, model)
            passes = None if witness is None else Passes(watch, attention, direct, patches, witness)
            always.wrap(model, "forward", partial(_wrap_pass, watch, passes))
        if new_ones:
            _patch_models_to_come(patches, watch)
        yield


def _wrap_pass(watch: Watch, passes: Passes | None, original: Callable[..., Any]) -> Callable[..., Any]:
    return watch.wrap_pass(original if passes is None else passes.wrap(original))


def _is_plain(model: torch.nn.Module) -> bool:
    """Tell whether a model's tensors are torch's own: others, such as quantised ones, have methods that call its functions."""
    from torch import Tensor
    from torch.nn import Parameter

    return all(type(each) in {Parameter, Tensor} for each in (*model.parameters(), *model.buffers()))


def _patch_modules(patches: Patches, watch: Watch, model: torch.nn.Module) -> None:
    modules = list(model.modules())
    for module in modules:
        weight = vars(module).get("_parameters", {}).get("weight")
        if weight is not None and weight.dim() == 2:  # of a projection, which may be of a kind that is not seen
            watch.widths.products.update(weight.shape)
    patch_activations(patches, watch, modules)
    patch_norms(patches, watch, modules)
    patch_rotary(patches, watch, modules)
    patch_experts(patches, watch, modules)
    patch_routers(patches, watch, modules)
    patch_recurrent(patches, watch, modules)
    patch_hooked(patches, watch, modules)


def _patch_models_to_come(patches: Patches, watch: Watch) -> None:
    from transformers import PreTrainedModel

    def make(original: Any) -> Any:
        def post_init(self: Any) -> None:
            original(self)
            _patch_modules(patches, watch, self)
            patches.wrap(type(self), "forward", watch.wrap_pass)  # a copy of the model has its own

        return post_init

    patches.wrap(PreTrainedModel, "post_init", make)
