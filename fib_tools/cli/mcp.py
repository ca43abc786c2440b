"""`fib mcp`: the operations for agents."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from rich.console import Console

from fib_tools.errors import RequestError
from fib_tools.host.env import read_secret
from fib_tools.model.summary import Result
from fib_tools.phases.context import Context
from fib_tools.phases.request import ALLOW_SUBMIT

__all__ = ["serve"]

_LOOPBACK = "127.0.0.1"
_TOKEN = "FIB_MCP_TOKEN"  # noqa: S105  # the name of a variable


def serve(
    context: Context,
    *,
    http: Annotated[
        int | None, Field(description="Serve streamable HTTP on this port; 0 takes a free one.", ge=0, le=65535)
    ] = None,
    host: Annotated[str, Field(description="Address to listen on; other machines reach only another.")] = _LOOPBACK,
    allowed_hosts: Annotated[
        tuple[str, ...], Field(description="Names by which clients may call it, such as example.org:8000.")
    ] = (),
    allow_submit: Annotated[bool, Field(description=ALLOW_SUBMIT)] = False,
) -> Result:
    """Serve the operations as MCP tools, to one client on stdin and stdout, or over HTTP.

    HTTP takes a bearer token: that of FIB_MCP_TOKEN, or a new one that is printed at the start.
    """
    # the SDK takes half a second, and other commands can do without it
    if http is None:
        if host != _LOOPBACK or allowed_hosts:
            raise RequestError("--host and --allowed-hosts are for HTTP", todo="pass --http PORT too")
        from mcp_server.server import serve_stdio

        serve_stdio(context, allow_submit=allow_submit)
        return Result()
    from mcp_server.http import bind, make_token, serve_http

    known = (read_secret(_TOKEN) or "").strip()
    token = known or make_token()
    with bind(host, http, token=token, allowed_hosts=allowed_hosts) as endpoint:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"listening on {endpoint.url}", markup=False)
        console.print(f"token: that of {_TOKEN}" if known else f"token: {token}", markup=False)
        serve_http(context, endpoint, allow_submit=allow_submit)
    return Result()
