"""Which of the three formats a path is in, and where a model's weights lie if it is named rather than pointed at."""

from __future__ import annotations

from pathlib import Path

from fib_tools.capture.checkpoints import gguf_file, meta_shards, safetensors_folder
from fib_tools.capture.checkpoints.stored import Checkpoint
from fib_tools.errors import FormatError, MissingDependencyError, OfflineError, RequestError
from fib_tools.host.paths import check_path
from fib_tools.sources.registry import find_model

__all__ = ["open_checkpoint"]

_PATTERNS = ("config.json", "*.safetensors", "model.safetensors.index.json")


def open_checkpoint(path_or_model: Path | str) -> Checkpoint:
    """Open a folder or file of weights, or a model whose safetensors lie in the Hugging Face cache.

    Only names and shapes are read.

    Raises:
        ConfigError: the model's config is missing, or transformers does not take it.
        FormatError: a file is missing, cut off, or not what its name says.
        MissingDependencyError: torch, transformers or gguf are not installed.
        OfflineError: the model is not in the cache.
    """
    _require_transformers()
    path = check_path(Path(path_or_model))
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    if isinstance(path_or_model, Path) or path.suffix in (".gguf", ".pth", ".safetensors"):
        raise RequestError(f"{str(path)!r} is not there", todo="pass the folder or file of the weights")
    return _open_cached(path_or_model)


def _require_transformers() -> None:
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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    entry = find_model(name)
    repo_id = entry.repo_id if entry else name
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=list(_PATTERNS), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise OfflineError(
            f"the weights of {repo_id!r} are not in the hub's cache",
            where="Hugging Face cache",
            todo=f"run: hf download {repo_id} --include 'config.json' '*.safetensors*'; or pass a folder or file",
        ) from error
    return safetensors_folder.open_safetensors(folder, origin=f"{repo_id}@{folder.name}")
