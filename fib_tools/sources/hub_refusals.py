"""What the Hugging Face Hub means when it refuses, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fib_tools.errors import FibError, GatedError, SourceError, UnknownModelError
from fib_tools.sources.registry import find_nearest_names

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

__all__ = ["explain_refusal"]


def explain_refusal(repo_id: str, error: HfHubHTTPError, *, missing: str, instead: str) -> FibError:
    """Make an answer an error of ours; `missing` is the file that was asked for, `instead` how to do without the hub."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError) or (status in {401, 403} and not isinstance(error, RepositoryNotFoundError)):
        return GatedError(
            f"the hub does not show {repo_id!r} to you",
            where=repo_id,
            todo=f"accept its licence on its page there and set HF_TOKEN, or {instead}",
        )
    if isinstance(error, RepositoryNotFoundError) and status == 401:
        return GatedError(
            f"{repo_id!r} does not exist, or is private",
            where="Hugging Face Hub",
            todo="check the name; for a private repository set HF_TOKEN",
        )
    if isinstance(error, RepositoryNotFoundError):
        return UnknownModelError(repo_id, find_nearest_names(repo_id))
    if isinstance(error, EntryNotFoundError):
        return SourceError(f"the repository has no {missing}", where=repo_id, todo=instead)
    return SourceError(f"the hub answered with status {status}", where=repo_id, todo="try again later")
