"""What a command that runs a model needs of its weights: the model, cut to some layers, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.errors import RequestError
from fib_tools.phases.context import Context

if TYPE_CHECKING:
    from fib_tools.capture.checkpoints.stored import Checkpoint

__all__ = ["load_tokenizer", "load_weights"]


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
    """Open a folder or file of weights, or a model in the Hugging Face cache, and load its first layers.

    `layers` is how many; `layer` is the last one's number, from 0.

    Raises:
        FibError: they are not there, or not what they say.
    """
    # torch and transformers are heavy, and `fib --help` can do without them
    from fib_tools.capture.checkpoints.configs import count_layers
    from fib_tools.capture.checkpoints.loading import load_model
    from fib_tools.capture.checkpoints.opening import open_checkpoint

    checkpoint = open_checkpoint(context.check_readable(Path(model)) if Path(model).exists() else model)
    if layer is not None:
        _check_layer(layer, count_layers(checkpoint.config))
        layers = layer + 1
    return checkpoint, load_model(checkpoint, layers=layers, dtype=dtype, device=device, attention=attention)


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
    where = path if path.is_dir() else path.parent if path.is_file() else model
    try:
        return AutoTokenizer.from_pretrained(where, local_files_only=True, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        raise RequestError("there is no tokenizer with these weights", where=str(where), todo=todo) from error
