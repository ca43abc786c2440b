"""What a command that runs a model needs of its weights: the model, cut to some layers, and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from fib_tools.architecture.quirks import find_quirk
from fib_tools.errors import RequestError, UnknownModelError
from fib_tools.host.env import read_settings
from fib_tools.phases.context import Context
from fib_tools.sources.huggingface import Hub, load_config
from fib_tools.sources.weights import fetch_weights, find_weights, name_repository

__all__ = ["DummyOption", "Loaded", "Loading", "WeightsArgument", "find_device", "load_tokenizer", "load_weights"]

WeightsArgument = Annotated[
    str,
    Field(
        description="Folder or file of weights (safetensors, .pth, .gguf), a Hugging Face repository (org/name) or a known "
        "name (qwen3-30b-a3b), whose weights are downloaded if the hub's cache has not got them."
    ),
]
DummyOption = Annotated[
    bool, Field(description="Make the weights up, from the model's config alone: nothing is downloaded but that.")
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How a model is loaded."""

    layers: int | None = None
    """The first layers alone."""
    layer: int | None = None
    """Instead: the number of the last one, from 0."""
    dtype: str
    device: str = "cpu"
    attention: str = "eager"
    is_dummy: bool = False
    """Weights are made up."""
    device_map: Literal["auto"] | None = None
    """Instead of one device: all of them, then the disk."""


class Loaded(NamedTuple):
    """A model that can be run."""

    model: Any
    weights: str
    """The format that they were read from, or `dummy`."""


def load_weights(context: Context, model: str, how: Loading) -> Loaded:
    """Load a model from a folder or file of weights, or by its name at the Hugging Face Hub, or make its weights up.

    What is not in the hub's cache is brought there, unless nothing may reach for the network.

    Raises:
        FibError: they are not there, or not what they say.
    """
    # torch and transformers are heavy, and `fib --help` can do without them
    from fib_tools.capture.checkpoints.configs import make_config
    from fib_tools.capture.checkpoints.dummy import make_dummy
    from fib_tools.capture.checkpoints.loading import load_model, parse_dtype
    from fib_tools.capture.checkpoints.opening import open_checkpoint, require_transformers

    if not model.strip():
        todo = "pass a folder or file of weights, or the name of a model; . is this folder"
        raise RequestError("the model has no name", todo=todo)
    if how.is_dummy and how.device_map is not None:
        todo = "leave --device-map out, and pass --layers for a large model"
        raise RequestError("made-up weights are made on one device", where="--dummy-weights", todo=todo)
    options: dict[str, Any] = {"device": how.device, "attention": how.attention}
    if how.is_dummy:
        require_transformers()
        with _say_weights():
            fields, where = _find_config(context, model)
        config = make_config(fields, where=where)
        layers, dtype = _count_layers(how, config), parse_dtype(how.dtype)
        return Loaded(make_dummy(config, where=where, layers=layers, dtype=dtype, **options), "dummy")
    with _say_weights():
        checkpoint = open_checkpoint(_find(context, model))
    layers = _count_layers(how, checkpoint.config)
    spread = None if how.device_map is None else context.workspace.root
    loaded = load_model(checkpoint, layers=layers, dtype=how.dtype, spread=spread, **options)
    return Loaded(loaded, checkpoint.format)


@contextmanager
def _say_weights() -> Iterator[None]:
    """Have an error about an unknown name offer what this command takes."""
    try:
        yield
    except UnknownModelError as error:
        raise UnknownModelError(error.name, error.nearest, files="a folder or file of weights") from error


def find_device(model: Any) -> Any:
    """Find where a model takes what it is given: parts whose weights are brought for each call lie nowhere by themselves."""
    return next((each.device for each in model.parameters() if each.device.type != "meta"), "cpu")


def _count_layers(how: Loading, config: Any) -> int | None:
    from fib_tools.capture.checkpoints.configs import count_layers

    if how.layer is None:
        return how.layers
    total = count_layers(config)
    if how.layer >= total:
        raise RequestError(
            f"the model has no layer {how.layer}", todo=f"take --layer 0 to {total - 1}: it has {total} layers"
        )
    return how.layer + 1


def _find_config(context: Context, model: str) -> tuple[dict[str, Any], str]:
    """Read a model's config, and say where; under the name that transformers has for its code."""
    source = load_config(
        model,
        offline=context.offline,
        hub=_hub(),
        inside=context.workspace.root if context.is_confined else None,
    )
    quirk = find_quirk(str(source.config.get("model_type")))
    same = {"model_type": quirk.traced_as} if quirk is not None and quirk.traced_as else {}
    return {**source.config, **same}, source.location


def _hub() -> Hub:
    return Hub(endpoint=read_settings().hf_endpoint)


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
        fetch_weights(repo_id, report=context.progress, hub=_hub())
    return model


def load_tokenizer(model: str, *, todo: str) -> Any:
    """Load the tokenizer that lies with the weights.

    Raises:
        RequestError: there is none; `todo` says what can be done without.
    """
    from transformers import AutoTokenizer

    path = Path(model)
    where = path if path.is_dir() else path.parent if path.is_file() else _find_cached(model)
    try:
        return AutoTokenizer.from_pretrained(where, local_files_only=True, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        raise RequestError("there is no tokenizer with these weights", where=str(where), todo=todo) from error


def _find_cached(model: str) -> Path | str:
    repo_id = name_repository(model)
    return find_weights(repo_id) or repo_id
