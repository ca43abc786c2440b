"""Phase 0, refresh: clone or update the repositories, and record which sources of facts a run goes by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fib_tools.errors import OfflineError, RequestError
from fib_tools.host.locks import hold
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.request import COMMAND_LINE_ONLY
from fib_tools.sources.clones import REPOS, Clone, CloneStatus, clone_sources

__all__ = ["CloneResult", "clone_repositories"]

_NAMES = tuple(repo.name for repo in REPOS)


class CloneResult(Result):
    """What became of each repository."""

    target_dir: str
    repositories: dict[str, Clone]

    @property
    def has_errors(self) -> bool:
        """A repository that could not be cloned or updated is an error."""
        return any(clone.status is CloneStatus.FAILED for clone in self.repositories.values())

    def summary(self) -> Summary:
        """List the repositories with status and commit."""
        rows = tuple(
            (name, clone.status.value, (clone.sha or "")[:12], clone.branch or "", clone.error or clone.url)
            for name, clone in self.repositories.items()
        )
        table = Table(title="repositories", columns=("repository", "status", "commit", "branch", "url"), rows=rows)
        return Summary(tables=(table,), lines=(f"{self.target_dir}/repos_config.json",))


def clone_repositories(
    context: Context,
    *,
    target_dir: Annotated[Path | None, Field(description="Folder of the clones; the workspace when left out.")] = None,
    only: Annotated[
        tuple[str, ...] | None, Field(description="Only these: sglang, flashinfer, sgl-cookbook, flashinfer-trace.")
    ] = None,
    sglang_branch: Annotated[str | None, Field(description="Branch or tag of SGLang.")] = None,
    urls: Annotated[
        tuple[str, ...] | None,
        Field(description="Other origins, as name=url, such as sglang=file:///mirror/sglang."),
        COMMAND_LINE_ONLY,
    ] = None,
) -> CloneResult:
    """Clone SGLang, FlashInfer, the sgl-cookbook and the dataset, or bring clones up to date.

    Clones are partial and sparse. Local changes and commits are kept: such a clone is left as it is, and said so.
    """
    if context.offline:
        raise OfflineError(
            "cloning needs the network", todo="run it without --offline; other commands work without clones"
        )
    unknown = sorted(set(only or ()) - set(_NAMES))
    if unknown:
        raise RequestError(f"no repository {unknown[0]!r}", todo=f"use {', '.join(_NAMES)}")
    target = target_dir or context.workspace.root
    context.workspace.create()
    with hold(context.workspace.root / ".clone.lock", purpose="cloning"):
        config = clone_sources(target, only=only, sglang_branch=sglang_branch, urls=_parse_urls(urls))
    return CloneResult(target_dir=str(target), repositories=dict(config.repositories))


def _parse_urls(urls: tuple[str, ...] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in urls or ():
        name, equals, url = text.partition("=")
        if not equals or name not in _NAMES:
            raise RequestError(f"{text!r} is not name=url", todo=f"name one of {', '.join(_NAMES)}")
        pairs[name] = url
    return pairs
