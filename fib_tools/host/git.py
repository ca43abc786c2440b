"""Clones of other projects' repositories, which may hold a user's own edits and commits."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

from fib_tools.errors import GitError, OfflineError, RequestError
from fib_tools.host.env import child_environment, proxy_environment, read_settings, redact
from fib_tools.host.files import storage_errors, sweep_temporaries, temporary_sibling
from fib_tools.host.process import Completed, run_command

__all__ = [
    "AddedFile",
    "UpdateOutcome",
    "UpdateResult",
    "clone_partial",
    "head_sha",
    "init_submodules",
    "list_added_files",
    "remote_url",
    "update",
]

_NETWORK_SECONDS = 1800.0
_LOCAL_SECONDS = 120.0
_URL = re.compile(r"(?:https|ssh|file)://[^\s\x00-\x1f]+|[A-Za-z0-9_][\w.-]*@[\w.-]+:[\w.~/][\w./~+-]*", re.ASCII)
_BRANCH = re.compile(r"[A-Za-z0-9_][\w./+-]*", re.ASCII)
_SETTINGS = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "advice.detachedHead=false")
_UNREACHABLE = re.compile(
    r"could not resolve host|failed to connect|network is unreachable|connection (?:timed out|refused|reset)",
    re.IGNORECASE,
)
_WOULD_OVERWRITE = "would be overwritten by"
_MESSAGE_LENGTH = 600


class UpdateOutcome(str, Enum):
    """What `update` did, and if it did nothing, which work of the user was in the way."""

    UP_TO_DATE = "up_to_date"
    FAST_FORWARDED = "fast_forwarded"
    KEPT_LOCAL_CHANGES = "kept_local_changes"
    KEPT_LOCAL_COMMITS = "kept_local_commits"
    DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateResult:
    """Where a clone stands after `update`."""

    outcome: UpdateOutcome
    before: str
    after: str
    """The SHA that HEAD has now."""
    remote: str
    """The SHA that the branch has on the other side."""


def clone_partial(
    url: str,
    target: Path,
    *,
    branch: str | None = None,
    sparse: tuple[str, ...] = (),
    depth: int | None = None,
) -> str:
    """Clone without the contents that the checkout does not show; the target appears whole or not at all.

    Returns the SHA that was checked out.

    Raises:
        RequestError: the URL, branch or a sparse path is not one, or the target exists.
        OfflineError: the other side cannot be reached, or may not.
        GitError: git refused.
    """
    _check_url(url)
    _check_sparse(sparse)
    if target.exists():
        raise RequestError("the folder of a new clone exists already", where=str(target), todo="update it instead")
    options = ["--no-checkout", "--no-tags", "--single-branch", "--filter=blob:none"]
    options += [f"--branch={_check_branch(branch)}"] if branch else []
    options += [f"--depth={depth}"] if depth else []
    with storage_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(target.parent)
    temporary = temporary_sibling(target)
    try:
        _git(["clone", *options, "--", url, str(temporary)], target.parent, url=url)
        if sparse:
            _git(["sparse-checkout", "set", "--cone", *sparse], temporary, url=url)
        _git(["checkout", "--quiet"], temporary, url=url)
        sha = head_sha(temporary)
        with storage_errors(target):
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sha


def update(target: Path, branch: str) -> UpdateResult:
    """Fetch, and move forward only if that loses nothing of the user's: no edits, no commits of their own.

    Raises:
        OfflineError: the other side cannot be reached, or may not.
        GitError: git refused.
    """
    _check_branch(branch)
    tracking = f"refs/remotes/origin/{branch}"
    url = _origin(target)
    _git(["fetch", "--no-tags", "--quiet", "origin", f"+refs/heads/{branch}:{tracking}"], target, url=url)
    before, remote = head_sha(target), _revision(target, tracking)
    outcome = _judge(target, before, remote=remote)
    if outcome is UpdateOutcome.FAST_FORWARDED:
        outcome = _fast_forward(target, remote, url=url)
    return UpdateResult(outcome=outcome, before=before, after=head_sha(target), remote=remote)


def head_sha(target: Path) -> str:
    """Name the commit that is checked out."""
    return _revision(target, "HEAD")


def remote_url(target: Path) -> str:
    """Name where the clone came from, without credentials."""
    return redact(_origin(target))


def init_submodules(target: Path, *, only: tuple[str, ...]) -> None:
    """Check out the named submodules, shallow, and no others."""
    _check_sparse(only)
    if only:
        command = ["submodule", "update", "--init", "--depth=1", "--filter=blob:none", "--", *only]
        _git(command, target, url=_origin(target))


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedFile:
    """A file that a commit added."""

    path: str
    """Relative to the clone, with forward slashes."""
    date: str
    """The commit's day, such as 2026-11-21."""
    sha: str


def list_added_files(target: Path, folder: str, *, since_days: int) -> tuple[AddedFile, ...]:
    """List the files under `folder` that commits of the last days added, newest first.

    A partial clone has the history without the contents, so nothing is fetched.
    """
    _check_sparse((folder,))
    command = [
        "-c",
        "core.quotePath=false",
        "log",
        "--diff-filter=A",
        "--name-only",
        f"--since={since_days} days ago",
        "--format=%x00%H %cs",
    ]
    text = _git([*command, "--", folder], target).stdout
    added: list[AddedFile] = []
    for commit in text.split("\0")[1:]:
        head, *paths = [line for line in commit.splitlines() if line]
        sha, _, date = head.partition(" ")
        added += [AddedFile(path=path, date=date, sha=sha) for path in paths]
    return tuple(added)


def _judge(target: Path, before: str, *, remote: str) -> UpdateOutcome:
    if _git(["status", "--porcelain", "--untracked-files=no"], target).stdout:
        return UpdateOutcome.KEPT_LOCAL_CHANGES
    if before == remote:
        return UpdateOutcome.UP_TO_DATE
    if _is_ancestor(target, before, of=remote):
        return UpdateOutcome.FAST_FORWARDED
    return UpdateOutcome.KEPT_LOCAL_COMMITS if _is_ancestor(target, remote, of=before) else UpdateOutcome.DIVERGED


def _fast_forward(target: Path, remote: str, *, url: str) -> UpdateOutcome:
    try:
        _git(["merge", "--ff-only", "--quiet", "--no-autostash", remote], target, url=url)
    except GitError as error:
        if _WOULD_OVERWRITE in error.what:  # an untracked file of the user has the name of a new one
            return UpdateOutcome.KEPT_LOCAL_CHANGES
        raise
    return UpdateOutcome.FAST_FORWARDED


def _is_ancestor(target: Path, older: str, *, of: str) -> bool:
    completed = _run(["merge-base", "--is-ancestor", older, of], target)
    if completed.status not in {0, 1}:
        raise _failure("merge-base", completed, target)
    return completed.status == 0


def _revision(target: Path, name: str) -> str:
    return _git(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"], target).stdout.strip()


def _origin(target: Path) -> str:
    return _git(["remote", "get-url", "origin"], target).stdout.strip()


def _git(args: list[str], cwd: Path, *, url: str | None = None) -> Completed:
    """Run git; `url` is the other side of a command that may need the network."""
    if url is not None and not url.startswith("file://") and read_settings().offline:
        raise OfflineError(f"git {args[0]} needs the network", where=redact(url), todo="unset FIB_OFFLINE to allow it")
    completed = _run(args, cwd, url=url)
    if completed.status != 0:
        raise _failure(args[0], completed, cwd, url=url)
    return completed


def _run(args: list[str], cwd: Path, *, url: str | None = None) -> Completed:
    protocols = "https:ssh:file" if url is not None and url.startswith("file://") else "https:ssh"
    environment = child_environment(
        home=cwd,
        extra={
            **proxy_environment(),
            "GIT_ALLOW_PROTOCOL": protocols,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
            "LC_ALL": "C",
        },
    )
    timeout = _LOCAL_SECONDS if url is None else _NETWORK_SECONDS
    return run_command(["git", *_SETTINGS, *args], cwd=cwd, timeout=timeout, env=environment)


def _failure(verb: str, completed: Completed, cwd: Path, *, url: str | None = None) -> GitError | OfflineError:
    said = redact(completed.stderr.strip()[-_MESSAGE_LENGTH:]) or f"exit status {completed.status}"
    where = redact(url) if url else str(cwd)
    if _UNREACHABLE.search(said):
        return OfflineError(f"git {verb} could not reach the other side: {said}", where=where, todo="check the network")
    return GitError(f"git {verb} failed: {said}", where=where, todo=_advise(said))


def _advise(said: str) -> str:
    if "index.lock" in said:
        return "end the other git command, or remove the lock file it left"
    if "could not read Username" in said or "Authentication failed" in said or "not found" in said:
        return "check the URL; private repositories need an ssh:// URL"
    if "dubious ownership" in said:
        return "clone as the user who runs this tool"
    return "check the URL, branch and folder"


def _check_url(url: str) -> None:
    if not _URL.fullmatch(url):
        raise RequestError(f"{redact(url)!r} is not a URL to clone", todo="pass an https://, ssh:// or file:// URL")


def _check_branch(branch: str) -> str:
    if not _BRANCH.fullmatch(branch) or ".." in branch:
        raise RequestError(f"{branch!r} is not a branch name", todo="pass a branch as git names it")
    return branch


def _check_sparse(paths: tuple[str, ...]) -> None:
    for path in paths:
        pure = PurePosixPath(path)
        if not path or path.startswith(("-", "!", "#")) or pure.is_absolute() or ".." in pure.parts or "\0" in path:
            raise RequestError(f"{path!r} is not a folder of the repository", todo="pass a relative path")
