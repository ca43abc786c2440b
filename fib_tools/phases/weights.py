"""What a command that runs a model needs of its weights: the model, cut to some layers, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fib_tools.errors import RequestError
from fib_tools.host.env import read_settings
from fib_tools.phases.context import Context
from fib_tools.sources.huggingface import Hub
from fib_tools.sources.weights import fetch_weights, find_weights, name_repository

if TYPE_CHECKING:
    from fib_tools.capture.checkpoints.stored import Checkpoint

__all__ = ["WeightsArgument", "load_tokenizer", "load_weights"]

WeightsArgument = Annotated[
    str,
    Field(
        description="Folder or file of weights (safetensors, .pth, .gguf), a Hugging Face repository (org/name) or a known "
        "name (qwen3-30b-a3b), whose weights are downloaded if the hub's cache has not got them."
    ),
]


def load_weights(
    context: Context,
    model: str,
    *,
    layers: int | None = None,
    layer: int | None = None,
    dtype: str,
    device: str = "cpu",
    attention: str = "eager",
) -> tuple[Checkpoint, Any]:
    """Open a folder or file of weights, or those of a model at the Hugging Face Hub, and load its first layers.

    What is not in the hub's cache is brought there, unless nothing may reach for the network.
    `layers` is how many; `layer` is the last one's number, from 0.

    Raises:
        FibError: they are not there, or not what they say.
    """
    # torch and transformers are heavy, and `fib --help` can do without them
    from fib_tools.capture.checkpoints.configs import count_layers
    from fib_tools.capture.checkpoints.loading import load_model
    from fib_tools.capture.checkpoints.opening import open_checkpoint

    checkpoint = open_checkpoint(_find(context, model))
    if layer is not None:
        _check_layer(layer, count_layers(checkpoint.config))
        layers = layer + 1
    return checkpoint, load_model(checkpoint, layers=layers, dtype=dtype, device=device, attention=attention)


def _find(context: Context, model: str) -> Path | str:
    """Have the weights on this machine; a name that is of no file here is of a model at the hub."""
    from fib_tools.capture.checkpoints.opening import is_file_name

    path = Path(model)
    if path.exists():
        return context.check_readable(path)
    if is_file_name(model) or context.offline:
        return model
    repo_id = name_repository(model)
    if find_weights(repo_id) is None:
        fetch_weights(repo_id, report=context.progress, hub=Hub(endpoint=read_settings().hf_endpoint))
    return model


def _check_layer(layer: int, total: int) -> None:
    if layer >= total:
        raise RequestError(
            f"the model has no layer {layer}", todo=f"take --layer 0 to {total - 1}: it has {total} layers"
        )


def load_tokenizer(model: str, *, todo: str) -> Any:
    """Load the tokenizer that lies with the weights.

    Raises:
        RequestError: there is none; `todo` says what can be done without.
    """
    from transformers import AutoTokenizer

    path = Path(model)
    where = path if path.is_dir() else path.parent if path.is_file() else find_weights(name_repository(model)) or model
    try:
        return AutoTokenizer.from_pretrained(where, local_files_only=True, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        raise RequestError("there is no tokenizer with these weights", where=str(where), todo=todo) from error
