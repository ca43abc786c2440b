"""A model's config, from wherever it can be had: a file, the bundled registry, the Hugging Face Hub or its cache."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fib_tools.errors import DocumentTooLargeError, OfflineError, SourceError, UnknownModelError
from fib_tools.host.files import read_limited
from fib_tools.host.paths import locate, slugify
from fib_tools.model.base import Model
from fib_tools.sources.config_text import parse_config
from fib_tools.sources.hub_refusals import explain_refusal
from fib_tools.sources.registry import ModelEntry, find_model, find_nearest_names

__all__ = ["ConfigSource", "Hub", "check_repo_id", "load_config"]

_FILE = "config.json"
# The largest published config known here has 40 KB; quantisation lists make some ten times as large.
_LIMIT = 2 << 20
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Hub(Model):
    """Which hub to ask, as whom, and where its files are kept; what is unset is the hub client's own choice."""

    endpoint: str | None = None
    cache_dir: Path | None = None
    revision: str | None = None
    """A branch, tag or commit; with one the bundled registry is not asked."""
    token: str | None = Field(default=None, repr=False)


class ConfigSource(Model):
    """A config and where it came from."""

    config: dict[str, Any]
    repo_id: str | None = None
    """The repository it belongs to; none for a file of which nothing is known."""
    slug: str
    """A short name that is safe in file names."""
    origin: Literal["file", "local", "registry", "cache", "hub"]
    location: str
    """The file, folder or URL it was read from."""
    revision: str | None = None
    """The commit, as far as known."""
    sha256: str
    """Of its bytes."""


def load_config(
    name: str,
    *,
    config_file: Path | None = None,
    offline: bool = False,
    refresh: bool = False,
    hub: Hub | None = None,
    inside: Path | None = None,
) -> ConfigSource:
    """Load a model's config: from the file, a local folder, the registry, or the hub, in this order.

    `refresh` goes to the hub even for a model that the registry holds.
    A local folder has to lie in `inside`, where relative names begin, if that is given.

    Raises:
        UnknownModelError: no source knows the name.
        GatedError: the hub wants a licence accepted or a token.
        OfflineError: only the hub could know, and it cannot or may not be reached.
        ConfigError: the config is malformed.
        DocumentTooLargeError: it has more than 2 MB.
        PathError: the name is a path that leads out of `inside`.
    """
    hub = hub or Hub()
    entry = find_model(name)
    if config_file is not None:
        return _from_file(name, config_file, entry, "file")
    folder = _find_folder(name, inside)
    if folder is not None:
        return _from_file(folder.resolve().name, folder / _FILE, None, "local")
    if entry is not None and entry.config_bytes is not None and not refresh and hub.revision is None:
        return _from_registry(entry)
    repo_id = entry.repo_id if entry else name
    check_repo_id(repo_id)
    return _from_hub(repo_id, entry, hub=hub, offline=offline)


def check_repo_id(repo_id: str) -> None:
    """Refuse a name that cannot be a repository's.

    Raises:
        UnknownModelError: with the nearest known names.
    """
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise UnknownModelError(repo_id, find_nearest_names(repo_id))


def _find_folder(name: str, inside: Path | None) -> Path | None:
    """Find the local folder of this name if it holds a config."""
    folder = Path(name) if inside is None else locate(inside, Path(name))
    try:
        return folder if (folder / _FILE).is_file() else None
    except OSError:  # too long for a path, or not ours to look at
        return None


def _from_file(name: str, path: Path, entry: ModelEntry | None, origin: Literal["file", "local"]) -> ConfigSource:
    raw = read_limited(path, _LIMIT)
    return ConfigSource(
        config=parse_config(raw, where=str(path)),
        repo_id=entry.repo_id if entry else name if _REPO_ID.fullmatch(name) else None,
        slug=_slug(name, entry),
        origin=origin,
        location=str(path),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _from_registry(entry: ModelEntry) -> ConfigSource:
    raw = entry.config_bytes or b""
    return ConfigSource(
        config=parse_config(raw, where=f"registry: {entry.slug}"),
        repo_id=entry.repo_id,
        slug=entry.slug,
        origin="registry",
        location=entry.provenance.found_at if entry.provenance else "registry",
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _from_hub(repo_id: str, entry: ModelEntry | None, *, hub: Hub, offline: bool) -> ConfigSource:
    path, origin = _download(repo_id, hub=hub, offline=offline)
    raw = read_limited(path, _LIMIT)
    where = f"{(hub.endpoint or 'https://huggingface.co').rstrip('/')}/{repo_id}/{_FILE}"
    return ConfigSource(
        config=parse_config(raw, where=where),
        repo_id=repo_id,
        slug=_slug(repo_id, entry),
        origin=origin,
        location=where,
        revision=path.parent.name,
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _download(repo_id: str, *, hub: Hub, offline: bool) -> tuple[Path, Literal["cache", "hub"]]:
    """Bring the config into the hub's cache once its size is known; the folder it lies in is named for the commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined] # base of its transport's

    if offline:
        return _find_cached(repo_id, hub=hub, offline=True), "cache"
    try:
        is_cached = _check_remote(repo_id, hub)
        path = hf_hub_download(
            repo_id, _FILE, revision=hub.revision, endpoint=hub.endpoint, cache_dir=hub.cache_dir, token=hub.token
        )
    except HfHubHTTPError as error:
        raise explain_refusal(repo_id, error, missing=_FILE, instead="pass --config FILE") from error
    except (HTTPError, ConnectionError):
        return _find_cached(repo_id, hub=hub, offline=False), "cache"
    except OSError as error:
        raise SourceError(f"the hub's files cannot be read or kept: {error}", where=repo_id) from error
    return Path(path), "cache" if is_cached else "hub"


def _check_remote(repo_id: str, hub: Hub) -> bool:
    """Ask for the config's size and refuse a huge one; tell whether the cache holds that very commit's."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    url = hf_hub_url(repo_id, _FILE, revision=hub.revision, endpoint=hub.endpoint)
    remote = get_hf_file_metadata(url, token=hub.token, endpoint=hub.endpoint)
    if remote.size is not None and remote.size > _LIMIT:
        raise DocumentTooLargeError(
            f"the config has {remote.size} bytes, more than {_LIMIT}", where=repo_id, todo="pass --config FILE"
        )
    return isinstance(try_to_load_from_cache(repo_id, _FILE, cache_dir=hub.cache_dir, revision=remote.commit_hash), str)


def _find_cached(repo_id: str, *, hub: Hub, offline: bool) -> Path:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo_id, _FILE, cache_dir=hub.cache_dir, revision=hub.revision)
    if not isinstance(path, str):
        raise _offline(repo_id, offline=offline)
    return Path(path)


def _offline(repo_id: str, *, offline: bool) -> OfflineError:
    reason = "it may not be asked" if offline else "it cannot be reached"
    return OfflineError(
        f"the config of {repo_id!r} is not in the hub's cache, and {reason}",
        where="Hugging Face Hub",
        todo="pass --config FILE, or go online once to fetch it",
    )


def _slug(name: str, entry: ModelEntry | None) -> str:
    return entry.slug if entry else slugify(name.rpartition("/")[2])
