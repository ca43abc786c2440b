"""The Hugging Face Hub's trending list: which text models people look at now, with their architectures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fib_tools.errors import OfflineError, SourceError
from fib_tools.model.base import Model, NonEmpty
from fib_tools.sources.huggingface import Hub

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

__all__ = ["TrendingModel", "list_trending"]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError)
"""What the hub's client raises on answers that are none of the hub's."""
_ARCHITECTURE = re.compile(r"[A-Za-z]\w{0,99}", re.ASCII)


class TrendingModel(Model):
    """A model of the list."""

    repo_id: NonEmpty
    architectures: tuple[str, ...]
    """As its config names them."""
    likes: int
    created: str
    """The day, such as 2026-11-21."""


def list_trending(limit: int, *, hub: Hub | None = None) -> tuple[TrendingModel, ...]:
    """List the text models that are trending, the first first; those whose config names no architecture are left out.

    Raises:
        OfflineError: the hub cannot be reached.
        SourceError: it answered with something else.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined] # base of its transport's

    hub = hub or Hub()
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    try:
        found = list(
            api.list_models(
                pipeline_tag="text-generation",
                sort="trending_score",
                limit=limit,
                expand=["config", "likes", "createdAt"],
            )
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise SourceError(f"the hub answered with status {status}", where="its list", todo="try again later") from error
    except (HTTPError, ConnectionError, OSError) as error:
        raise OfflineError("the hub cannot be reached", where="Hugging Face Hub", todo="check the network") from error
    except _MALFORMED as error:
        raise SourceError("the hub's answer is no list of models", where="its list", todo="try again later") from error
    return tuple(_read(found))


def _read(found: list[ModelInfo]) -> Iterator[TrendingModel]:
    """Take of each entry what is well formed: names go into paths and documents."""
    for info in found:
        named = (info.config or {}).get("architectures") or ()
        architectures = tuple(name for name in named if isinstance(name, str) and _ARCHITECTURE.fullmatch(name))
        if architectures and _REPO_ID.fullmatch(info.id):
            created = info.created_at.date().isoformat() if info.created_at else "an unknown day"
            yield TrendingModel(repo_id=info.id, architectures=architectures, likes=info.likes or 0, created=created)
