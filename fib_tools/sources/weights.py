"""A model's weights at the Hugging Face Hub: found in its cache, or brought there, safetensors and what goes with them only.

Files that are whole stay in the cache when a download is stopped; the next one fetches the others.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from typing_extensions import Self

from fib_tools.errors import FormatError, OfflineError, SourceError, StorageError
from fib_tools.host.files import read_limited
from fib_tools.sources.hub_refusals import explain_refusal
from fib_tools.sources.huggingface import Hub, check_repo_id
from fib_tools.sources.registry import find_model

__all__ = ["fetch_weights", "find_weights", "name_repository"]

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_INDEX_LIMIT = 64 << 20
_SUFFIX = ".safetensors"
_BESIDE = (
    _CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""What transformers reads beside weights: settings, and the files of every kind of tokenizer. None of them is code."""
_AT_ONCE = 4
"""Files that are fetched together; each of them may come over several connections of its own."""
_INSTEAD = "pass a folder or file of weights, or --dummy-weights"

Report = Callable[[str, int, int], None]


def name_repository(name: str) -> str:
    """Name the repository of a model: a name with an organisation is one, and a known model has one.

    Raises:
        UnknownModelError: it is neither.
    """
    entry = None if "/" in name else find_model(name)  # a base model and its tuned release have the same sizes alone
    repo_id = entry.repo_id if entry else name
    check_repo_id(repo_id)
    return repo_id


def find_weights(repo_id: str, *, hub: Hub | None = None) -> Path | None:
    """Find the folder in the hub's cache, if config and all weights are in it."""
    from huggingface_hub import try_to_load_from_cache

    hub = hub or Hub()
    config = try_to_load_from_cache(repo_id, _CONFIG, cache_dir=hub.cache_dir, revision=hub.revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    if (folder / _INDEX).is_file():
        return folder if all((folder / name).is_file() for name in _read_shards(folder / _INDEX)) else None
    return folder if any(folder.glob(f"*{_SUFFIX}")) else None


def _read_shards(path: Path) -> Iterable[str]:
    """Read which files an index names; what else may be wrong with it is told when the weights are opened."""
    try:
        document = json.loads(read_limited(path, _INDEX_LIMIT))
    except ValueError as error:
        raise FormatError(
            f"not JSON: {error}", where=str(path), todo="remove the file; it is then fetched anew"
        ) from error
    named = document.get("weight_map") if isinstance(document, dict) else None
    return {str(name) for name in named.values()} if isinstance(named, dict) else ()


def fetch_weights(repo_id: str, *, report: Report, hub: Hub | None = None) -> Path:
    """Bring config, tokenizer and safetensors of a model into the hub's cache; how much it is, is said first.

    Raises:
        GatedError: the hub wants a licence accepted or a token.
        OfflineError: it cannot be reached.
        SourceError: the repository has no safetensors, or the hub fails.
        StorageError: the disk has no room for them.
        UnknownModelError: there is no such repository.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HTTPError,  # base of its transport's
        LocalEntryNotFoundError,  # an OSError, and no fault of the disk: the hub did not answer
    )

    hub = hub or Hub()
    cache = hub.cache_dir or Path(constants.HF_HUB_CACHE)
    try:
        wanted = _list_missing(repo_id, hub)
        total = sum(wanted.values())
        _check_room(repo_id, cache, total)
        report(f"downloading {_spell(total)} of {repo_id} in {len(wanted)} files", 0, total >> 20)
        _download(repo_id, wanted, hub=hub, report=report)
    except HfHubHTTPError as error:
        raise explain_refusal(repo_id, error, missing="such file", instead=_INSTEAD) from error
    except (HTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        raise OfflineError(
            f"{repo_id!r} cannot be downloaded: {type(error).__name__}",
            where="Hugging Face Hub",
            todo=f"run it again, which goes on with the files that are missing; or {_INSTEAD}",
        ) from error
    except OSError as error:
        raise StorageError(
            f"the hub's cache cannot be written: {error}",
            where=str(cache),
            todo="free some space, or set HF_HOME to a folder that can be written",
        ) from error
    folder = find_weights(repo_id, hub=hub)
    if folder is None:
        raise SourceError("the repository is not whole: its index names files that it lacks", where=repo_id)
    return folder


def _list_missing(repo_id: str, hub: Hub) -> Mapping[str, int]:
    """List the files that are to be fetched, with their sizes."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    info = HfApi(endpoint=hub.endpoint, token=hub.token).model_info(repo_id, revision=hub.revision, files_metadata=True)
    sizes = {each.rfilename: int(each.size or 0) for each in info.siblings or ()}
    chosen = _choose(sizes, repo_id)
    return {
        name: sizes[name]
        for name in chosen
        if not isinstance(try_to_load_from_cache(repo_id, name, cache_dir=hub.cache_dir, revision=info.sha), str)
    }


def _choose(names: Iterable[str], repo_id: str) -> list[str]:
    """Take one copy of the weights: releases have the author's own layout beside transformers', or in a folder."""
    there = [name for name in names if "/" not in name]
    tensors = [name for name in there if name.endswith(_SUFFIX)]
    shards = [name for name in tensors if name.startswith("model")] or tensors
    if not tensors or _CONFIG not in there:
        lacking = "safetensors" if _CONFIG in there else _CONFIG
        raise SourceError(f"the repository has no {lacking}", where=repo_id, todo=_INSTEAD)
    return [name for name in there if name in _BESIDE] + [name for name in there if name == _INDEX] + shards


def _check_room(repo_id: str, cache: Path, size: int) -> None:
    folder = next(each for each in (cache, *cache.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise StorageError(
            f"{repo_id} needs {_spell(size)}, and the disk has {_spell(free)} free",
            where=str(cache),
            todo=f"free some space, set HF_HOME to a folder on a larger disk, or {_INSTEAD}",
        )


def _download(repo_id: str, wanted: Mapping[str, int], *, hub: Hub, report: Report) -> None:
    from huggingface_hub import hf_hub_download

    total = sum(wanted.values()) >> 20
    lock, stop, done = threading.Lock(), threading.Event(), 0

    def count(size: float) -> None:
        nonlocal done
        if stop.is_set():
            raise KeyboardInterrupt
        with lock:
            done += int(size)
            report(f"downloading {repo_id}: MB", done >> 20, total)

    def fetch(name: str) -> None:
        hf_hub_download(
            repo_id,
            name,
            revision=hub.revision,
            endpoint=hub.endpoint,
            cache_dir=hub.cache_dir,
            token=hub.token,
            tqdm_class=_make_counter(count),
        )

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for _ in pool.map(fetch, wanted):
                pass
        except BaseException:
            stop.set()  # an interrupt reaches this thread alone, and a file may be gigabytes
            raise


def _make_counter(count: Callable[[float], None]) -> Any:
    """Make what the hub's client takes for a progress bar: it only passes on how many bytes have come."""

    class Counter:
        def __init__(self, *_: Any, initial: float = 0, **__: Any) -> None:
            count(initial)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None:
            """Show nothing, so that there is nothing to clear."""

        def update(self, n: float | None = 1) -> None:
            count(n or 0)

        def update_transfer(self, n: float | None = 1) -> None:
            """Pass over what the network brought: only what is written counts, and not twice."""

        def set_postfix_str(self, *_: Any, **__: Any) -> None:
            """Leave the rate out."""

        set_transfer_postfix_str = set_postfix_str

    return Counter


def _spell(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
