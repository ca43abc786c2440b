"""Clones of the repositories that facts are read from; what a user changed or committed in one is never lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from fib_tools.errors import FibError, GitError, RequestError, SourceError
from fib_tools.host.env import redact
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.host.git import UpdateOutcome, clone_partial, head_sha, init_submodules, remote_url, update
from fib_tools.model.base import Model, read_strict
from fib_tools.model.canonical import canonical_bytes, load_json

__all__ = ["REPOS", "Clone", "CloneStatus", "Repo", "ReposConfig", "clone_sources", "load_repos_config"]

_FILE = "repos_config.json"
_LIMIT = 1 << 20


class Repo(NamedTuple):
    """A repository that facts are read from, and the part of it that is needed."""

    name: str
    url: str
    branch: str
    sparse: tuple[str, ...]
    """The folders that are checked out; all when empty."""
    submodules: tuple[str, ...] = ()


REPOS = (
    Repo("sglang", "https://github.com/sgl-project/sglang", "main", ("python/sglang",)),
    Repo("flashinfer", "https://github.com/flashinfer-ai/flashinfer", "main", ("flashinfer", "tests/trace")),
    Repo("sgl-cookbook", "https://github.com/sgl-project/sgl-cookbook", "main", ("data/models",)),
    Repo(
        "flashinfer-trace",
        "https://huggingface.co/datasets/flashinfer-ai/flashinfer-trace",
        "main",
        ("definitions", "workloads", "solutions", "traces", "tests"),
    ),
)


class CloneStatus(str, Enum):
    """What `clone_sources` did with one repository."""

    CLONED = "cloned"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    KEPT_LOCAL_CHANGES = "kept_local_changes"
    KEPT_LOCAL_COMMITS = "kept_local_commits"
    FAILED = "failed"


_STATUSES = {
    UpdateOutcome.UP_TO_DATE: CloneStatus.UNCHANGED,
    UpdateOutcome.FAST_FORWARDED: CloneStatus.UPDATED,
    UpdateOutcome.KEPT_LOCAL_CHANGES: CloneStatus.KEPT_LOCAL_CHANGES,
    UpdateOutcome.KEPT_LOCAL_COMMITS: CloneStatus.KEPT_LOCAL_COMMITS,
    UpdateOutcome.DIVERGED: CloneStatus.KEPT_LOCAL_COMMITS,
}


class Clone(Model):
    """One repository in the workspace."""

    path: str
    """Relative to the target folder."""
    status: CloneStatus
    sha: str | None = None
    """The commit that is checked out; none when there is no clone."""
    branch: str
    url: str
    error: str | None = None
    """Why it failed."""


class ReposConfig(Model):
    """The clones of a workspace, as `repos_config.json` keeps them."""

    target_dir: str
    repositories: dict[str, Clone]


def clone_sources(
    target_dir: Path,
    *,
    only: Iterable[str] | None = None,
    sglang_branch: str | None = None,
    urls: Mapping[str, str] | None = None,
) -> ReposConfig:
    """Clone what is missing, move forward what is there, and write `repos_config.json`.

    A repository that fails is recorded as failed; the others go on.

    Raises:
        RequestError: a name in `only` or `urls` is no repository of the table.
        StorageError: the target folder cannot be written.
    """
    urls = urls or {}
    wanted = _select(only, urls)
    with storage_errors(target_dir):
        target_dir.mkdir(parents=True, exist_ok=True)
    repositories = _known_clones(target_dir)
    for repo in wanted:
        branch = sglang_branch if repo.name == "sglang" and sglang_branch else repo.branch
        chosen = repo._replace(url=urls.get(repo.name, repo.url), branch=branch)
        repositories[repo.name] = _clone_or_update(chosen, target_dir)
    config = ReposConfig(target_dir=str(target_dir), repositories=repositories)
    write_atomically(target_dir / _FILE, canonical_bytes(config))
    return config


def load_repos_config(target_dir: Path) -> ReposConfig:
    """Load what the last `clone_sources` recorded.

    Raises:
        SourceError: nothing was cloned here.
        FormatError: the file is malformed.
    """
    path = target_dir / _FILE
    if not path.is_file():
        raise SourceError("nothing was cloned here", where=str(target_dir), todo="run: fib clone")
    return read_strict(ReposConfig, load_json(read_limited(path, _LIMIT), where=str(path)), where=str(path))


def _select(only: Iterable[str] | None, urls: Mapping[str, str]) -> list[Repo]:
    names = [repo.name for repo in REPOS]
    chosen = names if only is None else list(only)
    for name in [*chosen, *urls]:
        if name not in names:
            raise RequestError(f"{name!r} is no repository to clone", todo=f"name one of {', '.join(names)}")
    return [repo for repo in REPOS if repo.name in chosen]


def _known_clones(target_dir: Path) -> dict[str, Clone]:
    return dict(load_repos_config(target_dir).repositories) if (target_dir / _FILE).is_file() else {}


def _clone_or_update(repo: Repo, target_dir: Path) -> Clone:
    target = target_dir / repo.name
    clone = Clone(path=repo.name, status=CloneStatus.FAILED, branch=repo.branch, url=redact(repo.url))
    try:
        if target.exists():
            _check_origin(repo, target)
            result = update(target, repo.branch)
            return clone.model_copy(update={"status": _STATUSES[result.outcome], "sha": result.after})
        sha = clone_partial(repo.url, target, branch=repo.branch, sparse=repo.sparse)
        init_submodules(target, only=repo.submodules)
        return clone.model_copy(update={"status": CloneStatus.CLONED, "sha": sha})
    except SourceError as error:
        return clone.model_copy(update={"sha": _find_sha(target), "error": str(error)})


def _check_origin(repo: Repo, target: Path) -> None:
    """A folder of the same name that came from elsewhere is the user's, and is left alone."""
    if not (target / ".git").exists():
        raise GitError("the folder is no clone", where=str(target), todo="move it away, or pass another --target-dir")
    origin, wanted = remote_url(target), redact(repo.url)
    if origin.rstrip("/").removesuffix(".git") != wanted.rstrip("/").removesuffix(".git"):
        raise GitError(
            f"it was cloned from {origin!r}", where=str(target), todo=f"move it away to have one of {wanted!r}"
        )


def _find_sha(target: Path) -> str | None:
    if not (target / ".git").exists():
        return None
    try:
        return head_sha(target)
    except FibError:
        return None
