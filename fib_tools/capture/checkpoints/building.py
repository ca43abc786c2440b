"""A transformers model without weights, to be filled, or with random ones: which class, what dtype each parameter has, what is computed."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

from fib_tools.capture.checkpoints.configs import REFUSALS
from fib_tools.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["build_empty", "build_random", "fill_computed_buffers", "find_text", "plan_dtypes", "set_tensor"]

_PUBLISHED = "take the config that was published with the weights"


def build_empty(config: Any, *, dtype: torch.dtype, attention: str, where: str) -> Any:
    """Build the language model of a config on the meta device.

    Raises:
        ConfigError: transformers has no class for it, or cannot build it.
    """
    return _build(config, dtype=dtype, attention=attention, where=where, device="meta")


def build_random(config: Any, *, dtype: torch.dtype, attention: str, where: str, device: str) -> Any:
    """Build the language model of a config with weights as they are before training.

    Raises:
        ConfigError: transformers has no class for it, or cannot build it.
    """
    return _build(config, dtype=dtype, attention=attention, where=where, device=device)


def _build(config: Any, *, dtype: torch.dtype, attention: str, where: str, device: str) -> Any:
    import torch
    from huggingface_hub.errors import StrictDataclassError

    model_class = _find_class(config, where)
    try:
        with torch.device(device):
            # from_config of one class, which `AutoModel` calls as well
            model = model_class._from_config(copy.deepcopy(config), attn_implementation=attention, dtype=dtype)  # noqa: SLF001
    except (*REFUSALS, StrictDataclassError) as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise ConfigError(f"transformers cannot build the model: {reason}", where=where, todo=_PUBLISHED) from error
    return model.eval()


def find_text(config: Any) -> Any:
    """Find the config of the language model alone in that of one that also sees, where transformers has a class for it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config()
    return text if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else config


def _find_class(config: Any, where: str) -> Any:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"{config.model_type!r} is an encoder with a decoder, and only models of a decoder alone are run here",
            where=where,
            todo="take the checkpoint of a decoder-only language model",
        )
    raise ConfigError(
        f"transformers has no language model class for {config.model_type!r}",
        where=where,
        todo="take the checkpoint of a language model",
    )


def plan_dtypes(model: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Tell in which dtype each tensor of the model is kept: routers' correction biases, for instance, in float32."""
    plan = model._get_dtype_plan(dtype)  # noqa: SLF001  # the list that `from_pretrained` itself goes by
    exceptions = [(re.compile(rf"(^|\.){_escape(name)}($|\.)"), kept) for name, kept in plan.items()]
    return {
        name: next((kept for pattern, kept in exceptions if pattern.search(name)), value.dtype)
        for name, value in model.state_dict().items()
    }


def _escape(name: str) -> str:
    """Take `*` for any number of digits or names, as transformers does."""
    return re.escape(name).replace(r"\*", ".*")


def set_tensor(model: Any, name: str, value: torch.Tensor) -> None:
    """Put a tensor in the place of one on the meta device, marked as no longer to be initialised."""
    import torch

    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:  # noqa: SLF001  # setattr would not replace a tensor of another device
        value = torch.nn.Parameter(value, requires_grad=False)
    value._is_hf_initialized = True  # type: ignore[attr-defined]  # noqa: SLF001  # the mark that transformers looks for
    setattr(module, leaf, value)


def fill_computed_buffers(model: Any, *, device: str, limit_bytes: int, where: str) -> None:
    """Compute the buffers that no checkpoint holds, such as rotary frequencies, by the model's own initialisation.

    Whatever has been set before is marked, and stays.

    Raises:
        ConfigError: the config makes them larger than the limit, or such that they cannot be computed.
    """
    import torch

    buffers = dict(model.named_non_persistent_buffers())
    size = sum(buffer.nbytes for buffer in buffers.values())
    if size > limit_bytes:
        raise ConfigError(f"the config asks for {size} bytes of computed tables", where=where, todo=_PUBLISHED)
    for name, buffer in buffers.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, torch.empty_like(buffer, device=device))
    try:
        with torch.no_grad():
            model.initialize_weights()
    except REFUSALS as error:
        reason = f"transformers cannot compute its tables: {type(error).__name__}: {str(error)[:300]}"
        raise ConfigError(reason, where=where, todo=_PUBLISHED) from error
