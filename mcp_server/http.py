"""Streamable HTTP: on loopback unless told otherwise, with Host and Origin checked, and a bearer token always."""

from __future__ import annotations

import hmac
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl

from fib_tools.errors import RequestError
from fib_tools.phases.context import Context
from mcp_server.server import build_server, end_startup

__all__ = ["Endpoint", "bind", "make_token", "serve_http"]

_PATH = "/mcp"
_SHORTEST_TOKEN = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]*")
_BACKLOG = 256
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A bound address, and whom it lets in."""

    listener: socket.socket
    token: str
    host: str
    allowed_hosts: tuple[str, ...] = ()
    """Names beside its own and the loopback ones by which clients may call it."""

    @property
    def url(self) -> str:
        """The address that clients connect to."""
        return f"http://{_bracket(self.host)}:{self.listener.getsockname()[1]}{_PATH}"


def make_token() -> str:
    """Make a token that cannot be guessed."""
    return secrets.token_urlsafe(32)


@contextmanager
def bind(host: str, port: int, *, token: str, allowed_hosts: tuple[str, ...] = ()) -> Iterator[Endpoint]:
    """Bind an address; port 0 takes a free one.

    Raises:
        RequestError: the address is empty, taken or not ours, or the token is short or cannot stand in a header.
    """
    if not host:
        raise RequestError("no address to listen on", todo="pass --host 127.0.0.1, or 0.0.0.0 for every interface")
    if not _TOKEN.fullmatch(token):
        raise RequestError("the token has characters that no header takes", todo="use letters, digits and -._~+/=")
    if len(token) < _SHORTEST_TOKEN:
        raise RequestError(f"the token has {len(token)} characters", todo=f"use {_SHORTEST_TOKEN} or more")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)  # whoever was told the address may call at once
        except OSError as error:
            what = f"cannot listen on {host}:{port}: {error.strerror or error}"
            raise RequestError(what, todo="choose another --http PORT or --host") from error
        yield Endpoint(listener=listener, token=token, host=host, allowed_hosts=allowed_hosts)


def serve_http(context: Context, endpoint: Endpoint, *, allow_submit: bool = False) -> None:
    """Serve until interrupted."""
    import uvicorn  # stdio does without it

    server = build_server(
        context,
        allow_submit=allow_submit,
        token_verifier=_Verifier(endpoint.token),
        # the SDK wants an issuer beside every verifier; a fixed token has none, and none is published
        auth=AuthSettings(issuer_url=AnyHttpUrl(endpoint.url), resource_server_url=None),
    )
    app = server.streamable_http_app(streamable_http_path=_PATH, transport_security=_security(endpoint))
    end_startup()
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    anyio.run(lambda: uvicorn.Server(config).serve(sockets=[endpoint.listener]))


class _Verifier:
    """Knows one token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def verify_token(self, token: str) -> AccessToken | None:
        if not hmac.compare_digest(token.encode(), self._token):
            return None
        return AccessToken(token=token, client_id="fib", scopes=[])


def _security(endpoint: Endpoint) -> TransportSecuritySettings:
    """Let in who calls the server by a name it goes by; a browser page of another origin does not."""
    own = dict.fromkeys((*_LOOPBACK, _bracket(endpoint.host)))
    hosts = [*(f"{name}:*" for name in own), *endpoint.allowed_hosts]
    return TransportSecuritySettings(
        allowed_hosts=hosts,
        allowed_origins=[f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts],
    )


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
