"""From a config to a transformers model without weights: which class, built on the meta device, layers grouped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fib_tools.architecture.facts import find_backbone
from fib_tools.architecture.facts_reader import LIMITS
from fib_tools.architecture.quirks import find_quirk
from fib_tools.architecture.structure_schema import LayerGroup, NotTraceable

__all__ = ["ATTENTION_NAME", "MetaModel", "build_model", "find_layers", "group_layers", "keep_examples"]

ATTENTION_NAME = "fib_trace"
_MAX_LAYERS = LIMITS["layers"]
_FIELDS_LEFT_OUT = ("quantization_config", "auto_map", "torch_dtype", "dtype", "architectures", "transformers_version")


class MetaModel(NamedTuple):
    """A model on the meta device."""

    model: Any
    config: Any
    model_type: str


def build_model(config: Mapping[str, Any]) -> MetaModel | NotTraceable:
    """Build the text backbone of a config as a transformers model, without weights and without remote code."""
    _path, backbone = find_backbone(config)
    model_type = str(backbone.get("model_type") or config.get("model_type"))
    quirk = find_quirk(model_type)
    if quirk is not None and quirk.not_traceable:
        return NotTraceable(model_type=model_type, reason=quirk.not_traceable)
    if any("layer" in str(name) and isinstance(value, int) and value > _MAX_LAYERS for name, value in backbone.items()):
        return NotTraceable(model_type=model_type, reason=f"the config asks for more than {_MAX_LAYERS} layers")
    traced_as = (quirk.traced_as if quirk else None) or model_type
    pair = _find_classes(traced_as, {**backbone, "model_type": traced_as})
    if isinstance(pair, str):
        return NotTraceable(model_type=model_type, reason=pair)
    import torch

    settings, model_class = pair
    with torch.device("meta"):
        model = model_class._from_config(settings, attn_implementation="eager", dtype=torch.bfloat16)  # noqa: SLF001  # from_config of one class
    for part in {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}.values():
        part._attn_implementation = ATTENTION_NAME  # noqa: SLF001  # from_config refuses names not registered yet
    return MetaModel(model.eval(), model.config.get_text_config(), traced_as)


def _find_classes(model_type: str, backbone: dict[str, Any]) -> tuple[Any, Any] | str:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    if model_type not in CONFIG_MAPPING:
        return f"transformers has no model_type {model_type!r}"
    fields = {name: value for name, value in backbone.items() if name not in _FIELDS_LEFT_OUT}
    settings = CONFIG_MAPPING[model_type].from_dict(fields)
    for candidate in (settings.get_text_config(), settings):
        for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
            if type(candidate) in mapping:
                return candidate, mapping[type(candidate)]
    return f"transformers has no language model class for {model_type!r}"


def find_layers(model: Any, count: int) -> tuple[str, Any]:
    """Find the list of decoder layers: the first ModuleList of that length."""
    import torch

    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and _is_text(path):
            return path, module
    return "", ()


def _is_text(path: str) -> bool:
    return not any(word in path for word in ("visual", "vision", "audio"))


def group_layers(path: str, layers: Any, config: Any) -> tuple[LayerGroup, ...]:
    """Group layers that are alike in classes, parameter shapes, scalar attributes and declared kind."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for index, layer in enumerate(layers):
        kinds.setdefault((_signature(layer), _declared(config, index)), []).append(index)
    return tuple(
        LayerGroup(count=len(members), example=_choose_example(members), layers=tuple(members), path=path)
        for members in kinds.values()
    )


def _choose_example(members: list[int]) -> int:
    """Take the first, but not layer 0 where there is another: its first norm follows no residual add."""
    return members[1] if members[0] == 0 and len(members) > 1 else members[0]


def _declared(config: Any, index: int) -> tuple[str, ...]:
    entries = (getattr(config, name, None) for name in ("layer_types", "mlp_layer_types", "layers_block_type"))
    return tuple(str(entry[index]) for entry in entries if isinstance(entry, list) and index < len(entry))


def _signature(layer: Any) -> tuple[Any, ...]:
    parts: list[Any] = []
    for path, module in layer.named_modules():
        scalars = tuple(
            (name, value)
            for name, value in sorted(vars(module).items())
            if isinstance(value, (int, float, str, bool, type(None)))
            and not name.startswith("_")
            and not _is_index(name)
        )
        shapes = tuple((name, tuple(value.shape)) for name, value in module._parameters.items() if value is not None)  # noqa: SLF001  # own parameters only
        parts.append((path, type(module).__name__, scalars, shapes))
    return tuple(parts)


def _is_index(name: str) -> bool:
    return name in ("layer_idx", "layer_id", "layer_number", "training", "block_idx", "idx")


def keep_examples(layers: Any, groups: tuple[LayerGroup, ...]) -> None:
    """Let every layer but the first and the groups' examples hand its input on.

    The layers stay in the list, so that the model's own loop sees the kinds and the number it expects.
    """
    examples = {0, *(group.example for group in groups)}
    answers: list[Any] = []
    layers[0].register_forward_hook(lambda *seen: answers.append(seen[2]))
    for index, layer in enumerate(layers):
        if index not in examples:
            layer.forward = _make_idle(answers)


def _make_idle(answers: list[Any]) -> Any:
    """Make a layer that returns what it was given, with whatever else layer 0 returned beside it."""

    def forward(hidden_states: Any, *_args: Any, **_kwargs: Any) -> Any:
        last = answers[-1] if answers else None
        return (hidden_states, *last[1:]) if isinstance(last, tuple) else hidden_states

    return forward
