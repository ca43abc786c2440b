"""What the HTTP status of a model service means: whether it passes, and what to do where it does not; and where it is."""

from __future__ import annotations

from typing import Any

from fib_tools.errors import FibError, RequestError, SourceError
from fib_tools.host.env import redact

__all__ = ["explain_status", "find_address", "is_passing"]

_PASSING = frozenset({408, 409, 429})
_SAID = 500
"""Characters of what a service says for itself."""


def is_passing(status: int) -> bool:
    """Tell whether the same request may be answered later."""
    return status in _PASSING or status >= 500


def explain_status(status: int, said: str, *, where: str, todo: str, advice: str = "") -> FibError:
    """Make the error: one of the source for what passes, with `todo`; of the request for the rest, with `advice`."""
    what = f"the model service answered {status}: {redact(said[:_SAID])}"
    if is_passing(status):
        return SourceError(what, where=where, todo=todo)
    return RequestError(what, where=where, todo=advice or todo)


def find_address(client: Any) -> str:
    """Find where a service's client asks; a name and password in the address are left out."""
    url = client.base_url
    return f"{url.scheme}://{url.netloc.decode()}{url.path}"
