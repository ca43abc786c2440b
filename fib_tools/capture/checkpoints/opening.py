"""Which of the three formats a path is in, and where a model's weights lie if it is named rather than pointed at."""

from __future__ import annotations

from pathlib import Path

from fib_tools.capture.checkpoints import gguf_file, meta_shards, safetensors_folder
from fib_tools.capture.checkpoints.stored import Checkpoint
from fib_tools.errors import FormatError, MissingDependencyError, OfflineError, RequestError
from fib_tools.host.paths import check_path
from fib_tools.sources.weights import find_weights, name_repository

__all__ = ["is_file_name", "open_checkpoint", "require_transformers"]


def open_checkpoint(path_or_model: Path | str) -> Checkpoint:
    """Open a folder or file of weights, or a model whose safetensors lie in the Hugging Face cache.

    Only names and shapes are read.

    Raises:
        ConfigError: the model's config is missing, or transformers does not take it.
        FormatError: a file is missing, cut off, or not what its name says.
        MissingDependencyError: torch, transformers or gguf are not installed.
        OfflineError: the model is not in the cache.
        UnknownModelError: the name is that of no model.
    """
    require_transformers()
    path = check_path(Path(path_or_model))
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    if isinstance(path_or_model, Path) or is_file_name(path_or_model):
        raise RequestError(f"{str(path)!r} is not there", todo="pass the folder or file of the weights")
    return _open_cached(path_or_model)


def is_file_name(name: str) -> bool:
    """Tell whether a name is meant as that of a file of weights, be it there or not."""
    return Path(name).suffix in (gguf_file.SUFFIX, meta_shards.SUFFIX, safetensors_folder.SUFFIX)


def require_transformers() -> None:
    """Refuse to go on without what models are built with.

    Raises:
        MissingDependencyError: torch or transformers are not installed.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        install = "pip install transformers torch"
        raise MissingDependencyError("transformers", purpose="loading weights", install=install) from error
    del torch


def _open_folder(folder: Path) -> Checkpoint:
    """Prefer safetensors: a release that has Meta's shards as well keeps them in a folder of their own."""
    if any(folder.glob(f"*{safetensors_folder.SUFFIX}")):
        return safetensors_folder.open_safetensors(folder)
    if any(folder.glob(f"consolidated.*{meta_shards.SUFFIX}")):
        return meta_shards.open_meta(folder)
    files = sorted(folder.glob(f"*{gguf_file.SUFFIX}"))
    if len(files) == 1:
        return gguf_file.open_gguf(files[0])
    found = f"{len(files)} GGUF files" if files else "no safetensors, consolidated.*.pth or GGUF files"
    raise FormatError(f"the folder has {found}", where=str(folder), todo="pass the file, or the folder of one model")


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == gguf_file.SUFFIX:
        return gguf_file.open_gguf(path)
    if path.suffix == meta_shards.SUFFIX:
        return meta_shards.open_meta(path.parent)
    if path.name.endswith(".safetensors.index.json"):
        return safetensors_folder.open_safetensors(path.parent)
    if path.suffix == safetensors_folder.SUFFIX:
        return safetensors_folder.open_safetensors(path.parent, (path,))
    todo = "pass a .safetensors, .pth or .gguf file, or the folder of a checkpoint"
    raise FormatError(f"{path.name!r} is in no format that is read", where=str(path), todo=todo)


def _open_cached(name: str) -> Checkpoint:
    repo_id = name_repository(name)
    folder = find_weights(repo_id)
    if folder is None:
        raise OfflineError(
            f"the weights of {repo_id!r} are not in the hub's cache, or not all of them",
            where="Hugging Face cache",
            todo=f"leave out --offline, run: hf download {repo_id} --include '*.json' '*.safetensors'; "
            "or pass a folder or file, or --dummy-weights",
        )
    return safetensors_folder.open_safetensors(folder, origin=f"{repo_id}@{folder.name}")
