"""From the fields of a config to a transformers config object, and to the same config with fewer layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from fib_tools.errors import ConfigError, RequestError

__all__ = ["REFUSALS", "count_layers", "cut_config", "make_config"]

REFUSALS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, AssertionError)
"""What transformers raises on configs that it does not understand."""
_FIELDS_LEFT_OUT = ("quantization_config", "auto_map", "torch_dtype", "dtype", "transformers_version")
"""Tensors are dequantised as they are read, in a dtype that the caller chooses; remote code is never run."""

_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf}


def make_config(fields: Mapping[str, Any], *, where: str) -> Any:
    """Make the transformers config object of a model type, without remote code.

    Raises:
        ConfigError: transformers does not know the model type, or refuses the fields.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        todo = "take a checkpoint of a model that the installed transformers knows, or upgrade transformers"
        raise ConfigError(f"transformers has no model_type {model_type!r}", where=where, todo=todo)
    kept = {name: _decode_floats(value) for name, value in fields.items() if name not in _FIELDS_LEFT_OUT}
    try:
        return CONFIG_MAPPING[model_type].from_dict(kept)
    except (*REFUSALS, StrictDataclassError) as error:
        todo = "take the config.json that was published with the weights"
        raise ConfigError(f"transformers refuses the config: {str(error)[:300]}", where=where, todo=todo) from error


def _decode_floats(value: Any) -> Any:
    """Copy a value, and read what transformers 5 writes for floats that JSON has not: {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        tag = value.get("__float__") if len(value) == 1 else None
        return (
            _FLOATS[tag]
            if isinstance(tag, str) and tag in _FLOATS
            else {name: _decode_floats(item) for name, item in value.items()}
        )
    return [_decode_floats(item) for item in value] if isinstance(value, list) else value


def count_layers(config: Any) -> int:
    """Tell how many decoder layers a config has.

    Raises:
        ConfigError: it does not say.
    """
    text = config.get_text_config()
    total = getattr(text, "num_hidden_layers", None)
    if type(total) is not int or total < 1:
        todo = "take the checkpoint of a language model"
        raise ConfigError(f"the config has {total!r} layers", where=f"a {text.model_type} config", todo=todo)
    return total


def cut_config(config: Any, layers: int | None) -> Any:
    """Copy a config, with the first layers only; lists that have an entry for each layer are cut with it.

    Raises:
        RequestError: there are not that many layers.
    """
    cut = copy.deepcopy(config)
    text = cut.get_text_config()
    total = count_layers(config)
    if layers is None or layers == total:
        return cut
    if not 1 <= layers <= total:
        raise RequestError(f"the model has {total} layers, not {layers}", todo=f"take --layers 1 to {total}")
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == total and ("layer" in name or "block" in name):
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return cut
